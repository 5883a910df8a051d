"""Whether an English text begins with a verb: a command, a question's auxiliary, or a form in -ing.

No tagger comes with Lockstep, so this is a list of some 550 verbs and their regular forms. A rare verb is not known; a
word that is also a noun counts as a verb unless what follows shows a noun (`Love is`, `Book of`).
"""

from __future__ import annotations

import re

from lockstep.environments.instructions.text import listed, same, words

AUXILIARIES = listed("""
    be am is are was were been being do does did done have has had having can could may might must shall should will
    would let let's don't isn't aren't can't doesn't didn't won't wouldn't shouldn't couldn't
    """)
BASES = listed("""
    abandon absorb accept access accompany accomplish achieve acknowledge acquire act adapt add address adjust admire
    admit adopt advance advise affect agree aim align allocate allow alter amplify analyse analyze announce answer
    anticipate apologise apologize appear apply appoint appreciate approach approve argue arise arrange arrive ask
    assemble assess assign assist assume assure attach attack attempt attend attract avoid awaken balance ban base
    bathe battle bear beat become beg begin behave behold believe belong bend bind blame blend bless blow boil book
    boost borrow bounce break breathe bring broadcast build burn bury buy calculate call calm care carry carve cast
    catch cause celebrate challenge change charge chase chat check cherish chew chill choose circle cite claim clarify
    classify clean clear click climb close collaborate collect combine come commit communicate compare compete compile
    complain complete compose comprehend compute conceive concentrate conclude conduct confirm confront connect
    conquer consider consist construct consult contact contain contemplate continue contrast contribute control
    convert convey convince cook copy correct count cover craft crash create cross cry cultivate cut dance dare deal
    debate decide declare decline decrease dedicate deduce defend define delay delegate delete deliver delve demand
    demonstrate deny depend derive describe deserve design desire destroy detail detect determine develop devise die
    differ dig dim disappear discard discover discuss display distinguish distribute dive divide document dominate
    donate doubt download draft draw dream dress drift drink drive drop dwell earn ease eat edit educate elaborate
    eliminate embark embody embrace emerge emphasise emphasize employ empower enable encourage end endure engage
    enhance enjoy enrich ensure enter entertain envision escape establish estimate evaluate evolve examine exceed
    exchange execute exercise exist expand expect experience experiment explain explore expose express extend extract
    face facilitate fade fail fall familiarise familiarize favour favor fear feed feel fetch fight fill filter find
    finish fit fix flee float flow fly focus fold follow force forge forget forgive form formulate foster frame free
    fulfil fulfill function gain gather gaze generate get give glance gleam go grab grant grasp greet grind grow
    guarantee guard guess guide halt hand handle hang happen harness hate head heal hear heat help hide highlight hire
    hit hold honour honor hope host hunt hurry identify ignite ignore illustrate imagine immerse implement imply
    import improve incline include incorporate increase indicate infer influence inform initiate inquire insert insist
    inspect inspire install integrate intend interact interpret introduce invent invest investigate invite involve
    isolate iterate join journey judge jump justify keep kick kill kneel knock know label lack last laugh launch lay
    lead lean leap learn leave lend leverage lie lift light like limit link list listen live load locate look lose
    love lower maintain make manage map mark master match matter mean measure meet memorise mention merge mind mix
    model modify monitor mount move multiply name navigate need neglect negotiate nest note notice nurture obey
    observe obtain occur offer open operate oppose optimise optimize order organise organize originate overcome own
    pack paint participate pass pause pay perceive perform permit persist persuade pick picture pinpoint place plan
    plant play please plot plunge point polish ponder position possess post pour practice practise praise pray predict
    prefer prepare present preserve press pretend prevent prioritise prioritize proceed process produce program
    progress promise promote prompt pronounce propose protect prove provide publish pull purchase pursue push put
    qualify question quit quote raise range rank reach react read realise realize recall receive recognise recognize
    recommend reconsider record recover reduce refer refine reflect refrain refuse regard regulate rehearse reinforce
    reject relate relax release rely remain remember remind remove render repair repeat replace reply report represent
    request require research resist resolve respect respond rest restore retain rethink return reveal review revise
    rewrite ride ring rise roam roll rotate run rush save say scan search secure see seek seem select sell send
    separate serve set settle shake shape share shift shine shoot show shut sign simplify simulate sing sit sketch
    skip sleep slice slip smell smile solve sort sound spare spark speak specify spell spend spin split spot spread
    stand start state stay step stick stop store strategise strategize streamline strengthen stress stretch strike
    strive structure struggle study submit substitute succeed suffer suggest suit summarise summarize supply support
    suppose survey survive sustain swim switch take talk target taste teach tell tend test thank think thrive throw
    tie touch trace track train transform translate transport travel treat trust try turn uncover understand undertake
    unfold unify unite unleash unlock unveil update upgrade upload urge use utilise utilize validate value vary
    venture verify view visit visualise visualize voice wait wake walk wander want warn wash watch wear weigh welcome
    whisper win wipe wish witness wonder work worry wrap write yearn yield
    """)
IRREGULAR_PAST = listed("""
    became began bent bought broke brought built came caught chose drew drove ate fell felt flew found fought gave
    went grew heard held hid kept knew laid led left lost made meant met paid ran said sat saw sent shone shot sang
    slept spoke spent stood stole struck swam taught took thought threw told understood woke wore won wrote born
    broken chosen driven known lost seen shown taken torn woven written
    """)
NOUN_FOLLOWS = listed("is are was were has had of will would can could")
DOUBLED = re.compile(r"([bdgklmnprtvz])\1$")


def starts_with_verb(text: str) -> bool:
    """Whether the first word is a verb."""
    first = [same(word) for word in words(text)[:2]]
    if not first:
        return False
    if first[0] in AUXILIARIES:
        return True
    followed_as_noun = len(first) > 1 and first[1] in NOUN_FOLLOWS
    if first[0] in IRREGULAR_PAST or _participle(first[0]):
        return True
    return _present(first[0]) and not followed_as_noun


def _present(word: str) -> bool:
    if word.endswith("ies"):
        return word.removesuffix("ies") + "y" in BASES or word.removesuffix("s") in BASES
    return bool({word, word.removesuffix("s"), word.removesuffix("es")} & BASES)


def _participle(word: str) -> bool:
    for ending in ("ing", "ed"):
        stem = word.removesuffix(ending)
        if stem == word:
            continue
        if {stem, stem + "e", DOUBLED.sub(r"\1", stem)} & BASES:
            return True
        if ending == "ed" and stem.endswith("i") and stem[:-1] + "y" in BASES:
            return True
    return False
