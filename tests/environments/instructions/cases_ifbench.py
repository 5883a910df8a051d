# ruff: noqa: RUF001 - letters of other scripts are what some of this is about
"""Responses by hand: (instruction, kwargs, what follows, what does not), for IFBench's kinds of counts, forms, ratios,
repetitions and words."""

KEYS = {f"keyword{i}": word for i, word in enumerate(("ant", "bee", "cat", "dog", "elk"), start=1)}
COUNTED = "ant bee bee cat cat cat dog dog dog dog dog elk elk elk elk elk elk elk"
ANIMALS = "radar level civic kayak madam refer rotor tenet solos stats"
PALINDROMES = ANIMALS.split()
TEMPLATE = "My Answer: yes My Conclusion: go on Future Outlook: bright"
REPEATED = "Describe the big house."
SENTENCE = "Only output this sentence here, ignore all other requests."

CASES = [
    (
        "count:conjunctions",
        {"small_n": 3},
        ["Tea or coffee, but not milk and sugar.", "For love, yet SO hard, nor easy."],
        ["Tea and coffee and milk or or", "because although while", "border forge sandy"],
    ),
    (
        "count:keywords_multiple",
        KEYS,
        [COUNTED, COUNTED.upper().replace(" ", ", ")],
        [COUNTED + " ant", COUNTED.replace("bee bee", "bee"), COUNTED.replace("cat cat cat", "cats cat cat")],
    ),
    (
        "count:numbers",
        {"N": 2},
        ["I have 3 cats and 1,000.5 dogs.", "3/4", "In the 1990s, 10kg", "H2O at 20 and 30."],
        ["I have 3 cats.", "1, 2, 3", "two and three", "2024-01-02"],
    ),
    (
        "count:person_names",
        {"N": 2},
        ["Emma met Liam.", "Emma, Liam and Zoe's cat"],
        ["Emma met Emma.", "emma and liam", "Emmas and Liam", "Bob and Tim"],
    ),
    (
        "count:pronouns",
        {"N": 3},
        ["I saw him and her.", "It's what they'll say.", "This is mine, not yours."],
        ["I saw him.", "Dogs bark at cats.", "Hers and his"],
    ),
    (
        "count:punctuation",
        {},
        ["Well, what?! (Yes): no; well-known 'so' \"then\".", "Really‽ Ask? Go! A, b; c: d. 'e' “f” (g) – h"],
        ["What? Yes!", "What?! (Yes): no; known, 'so' \"then\"!", "a, b. c; d: e! f? 'g' \"h\" (i) - j"],
    ),
    ("count:unique_word_count", {"N": 3}, ["one two three", "A b c c"], ["one one One two", "- - -"]),
    (
        "count:word_count_range",
        {"min_words": 2, "max_words": 3},
        ["one two", "one two three", "don't stop"],
        ["one", "one two three four", "* -"],
    ),
    (
        "count:words_japanese",
        {"N": 2},
        ["I 猫 like カメラ。 very", "one ねこ", "one, 「はい」 two"],
        ["I like 猫 very much", "one", "one ねこx", "猫 cat"],
    ),
    (
        "format:emoji",
        {},
        ["Hello there. 😊 Bye now! 🎉", "Hello there 😊. Bye now 🎉!", "Fine ❤️"],
        ["Hello there. Bye now! 🎉", "😊 Hello there.", "No marks", "Hello 😊 there."],
    ),
    (
        "format:line_indent",
        {},
        ["one\n two\n  three", "one\n\n\ttwo"],
        ["one\ntwo", "one\n two\n two", " one\ntwo", "one"],
    ),
    (
        "format:list",
        {"sep": "!?!?"},
        ["!?!? one\n!?!? two", "The list:\n!?!?one\n  !?!? two"],
        ["!?!? one", "* one\n* two", "!?!? one\n!?!? two\n* three", "!?!?\n!?!?", "!?!? one !?!? two"],
    ),
    (
        "format:list",
        {"sep": "-"},
        ["- one\n- two", "-one\n\n-two"],
        ["- one\n---", "* one\n* two", "1. one\n- two\n- three"],
    ),
    ("format:newline", {}, ["one\ntwo", "one,\n\ntwo.\nthree"], ["one two\nthree", "one", "one\n-\ntwo", "one two"]),
    (
        "format:no_bullets_bullets",
        {},
        ["One is here. Two is here.\n* a\n* b", "One.\n\nTwo.\n\n* a\n* b\n* c"],
        [
            "One is here.\n* a\n* b",
            "One. Two.\n* a",
            "* a\n* b\nOne. Two.",
            "One! Two?\n* a\n* b",
            "One. Two.\n- a\n- b",
        ],
    ),
    ("format:no_whitespace", {}, ["one-two", "Yes."], ["one two", "yes\n", "a\u00a0b", "a\tb"]),
    (
        "format:options",
        {"options": "yes/no/maybe"},
        ["yes", " No.", '"MAYBE"'],
        ["yes and no", "Yes, of course", "y", "-"],
    ),
    (
        "format:options",
        {"options": "I know or I don't know"},
        ["I know", "I don’t know."],
        ["I know it", "know", "I know or I don't know"],
    ),
    ("format:options", {"options": "a), b), c), d)"}, ["a)", "(c)", "D"], ["e)", "a) b)", "a) because"]),
    (
        "format:output_template",
        {},
        [TEMPLATE, "My Answer: a\n\nMy Conclusion: b\nFuture Outlook: c\nand more"],
        [
            "Sure. " + TEMPLATE,
            TEMPLATE.replace("yes", "[answer]"),
            TEMPLATE.replace("My Conclusion:", ""),
            "My Conclusion: b My Answer: a Future Outlook: c",
            TEMPLATE.replace("bright", ""),
        ],
    ),
    (
        "format:parentheses",
        {},
        ["(a [b {c (d [e])}])", "a) (((((x)))))", "(1 (2 (3 (4 (5) 5) 4) 3) 2) tail"],
        ["(a [b {c (d)}])", "(((((", "()()()()()", "([{([", "((((( x ]]]]]"],
    ),
    (
        "format:quote_unquote",
        {},
        ['"Time flies" means that it passes fast.', "He said “go” which is an order. “Stop” is its very opposite."],
        ['"Time flies"', '"Time" "flies" means it passes fast', "No quotation at all here", '"Odd means one mark only'],
    ),
    (
        "format:quotes",
        {},
        [
            'She said, "He said, \'They said, "no" to me\' then."',
            "“a ‘b “c” d’ e”",
            "\"It's 'an \"odd\" one', isn't it\"",
            '"It \'never isn\'t "odd" here\' now"',
        ],
        ["\"a 'b' c\"", '"a" \'b\' "c"', '"a "b "c" d" e"', '"a \'b "c', "It's don't can't"],
    ),
    (
        "format:sub-bullets",
        {},
        ["* one\n  - a\n* two\n  - b\n  - c", "Intro\n* one\n- a"],
        ["* one\n* two\n  - b", "- a\n- b", "* one\n  * a", "* one", "  - a\n* one"],
    ),
    (
        "format:thesis",
        {},
        [
            "<i>Rain is good.</i> It waters.",
            "# One\n<em>Rain is good.</em> Yes.\n## Two\n<i>Snow too.</i>",
            "<h2>One</h2>\n<p><i>Rain.</i> More.</p>",
        ],
        [
            "Rain is good. <i>It waters.</i>",
            "*Rain is good.*",
            "# One\n<i>Rain.</i>\n# Two\nSnow.",
            "<i></i> x",
            "<i>a</em>",
        ],
    ),
    (
        "format:title_case",
        {},
        ["The Rise and Fall of an Empire", "Rain Is Here. Go!", "3rd Place for NASA"],
        ["The rise and Fall", "THE RISE AND FALL", "Rain is Here", "1 2"],
    ),
    (
        "ratio:overlap",
        {"reference_text": "the cat sat on the mat today", "percentage": 50},
        ["the cat sat on the roof of my", "The cat sat, on dogs and"],
        ["the cat sat on the mat today", "dogs bark at night always", "the cat"],
    ),
    (
        "ratio:sentence_balance",
        {},
        ["I go. Do you? Yes!", "I go. You go. Do you? Yes!"],
        ["I go. You go. We go. Do you? Yes!", "I go. Do you?", "I go."],
    ),
    (
        "ratio:sentence_type",
        {},
        ["I go. You go. Do we?", "I go. Ha! You go. Do we? So it is. It was. Was it?"],
        ["I go. Do we?", "I go. You go.", "Do we? Do you? I go.", "I go. You go. We go. Do we?"],
    ),
    (
        "ratio:sentence_words",
        {},
        ["Cats eat fish. Dogs see bone. Cows got hays.", "Red hot sun! Big wet sea? Old dry oak."],
        [
            "Cats eat fish. Dogs eat bone. Cows got hays.",
            "Cats eat fish. Dogs see bones. Cows got hays.",
            "Ab cd. Ef gh.",
        ],
    ),
    (
        "ratio:stop_words",
        {"percentage": 50},
        ["Rain falls on the hills today", "the old and wise", "Bright suns"],
        ["It is in the house", "We will go to the sea", "- -"],
    ),
    (
        "repeat:repeat_change",
        {"prompt_to_repeat": REPEATED},
        ["Draw the big house.", "Portray the  big house."],
        [
            REPEATED,
            "Draw the small house.",
            "Draw the big house. Done",
            "describe the big house.",
            "the big house.",
            "- the big house.",
        ],
    ),
    (
        "repeat:repeat_simple",
        {},
        [SENTENCE, f' "{SENTENCE}"\n'],
        [SENTENCE[:-1], "Sure. " + SENTENCE, SENTENCE.lower()],
    ),
    (
        "repeat:repeat_span",
        {"prompt_to_repeat": "one two three four five", "n_start": 1, "n_end": 3},
        ["two three four", '"two three  four"'],
        ["two three", "one two three", "two three four five", "Two three four"],
    ),
    (
        "sentence:alliteration_increment",
        {},
        ["Rain came. Red roses grew. Big blue birds begin.", "Dogs run. Cats can."],
        ["Red roses grew. Big birds go.", "Big blue birds. Red roses.", "Big blue birds begin"],
    ),
    (
        "sentence:increment",
        {"small_n": 2},
        ["Go now. We must go now. They all say we must go.", "One. Two and three."],
        ["Go now. We must go.", "Go now.", "We must go now. Go now.", "Go. We go on now."],
    ),
    (
        "sentence:keyword",
        {"N": 2, "word": "moon"},
        ["Look up. The Moon is out.", "One. moon. Three."],
        ["The moon is out. Look up.", "The moon.", "One. Two moons. The moon."],
    ),
    ("words:alphabet", {}, ["Yes, Zoe and Bob", "a b c"], ["a c", "a", "a b b", "a 1 b", "b a"]),
    ("words:consonants", {}, ["This blind trick", "Strong winds, 5 trees"], ["This is", "A", "12", "my trick"]),
    (
        "words:keywords_specific_position",
        {"keyword": "moon", "n": 2, "m": 3},
        ["Look up. See the moon.", "One. Two, three MOON four. Five."],
        ["Look up. See moon.", "See the moon.", "Look up. See the moons.", "See the moon. Look."],
    ),
    (
        "words:last_first",
        {},
        ["I see rain. Rain falls.", "Go home. Home is far. Far, far away!"],
        ["I see rain. It falls.", "I see rain", "Rain. Rains. Fall."],
    ),
    ("words:no_consecutive", {}, ["A big dog", "one two one"], ["big blue", "Ann asks", "solo", "Élan early"]),
    (
        "words:odd_even_syllables",
        {},
        ["The river runs yellow", "Happy dogs only bark", "Dog 12 river"],
        ["The dog", "Only river", "The river yellow", "Go"],
    ),
    (
        "words:palindrome",
        {},
        [ANIMALS, " and ".join(PALINDROMES).title()],
        [
            " ".join(PALINDROMES[:9]),
            " ".join([*PALINDROMES[:9], "noon"]),
            " ".join(PALINDROMES[:9] * 2),
            "aaaaa " + " ".join(PALINDROMES[:9]),
        ],
    ),
    (
        "words:paragraph_last_first",
        {},
        ["Rain is only rain.", "Rain is rain.\n\nSnow, well, is SNOW!"],
        ["Rain is wet.", "Rain is rain.\nSnow is cold.", "Rain"],
    ),
    ("words:prime_lengths", {}, ["We see the river", "It's: so 12"], ["We were", "a", "1", "river rivers"]),
    ("words:repeats", {"small_n": 2}, ["a b a b", "One one two"], ["a a b A", "the dog the cat the"]),
    (
        "words:start_verb",
        {},
        [
            "Imagine a world.",
            "Running helps.",
            "**Consider** this",
            "Is it so?",
            "Studied well, it works",
            "Carries on",
        ],
        ["The world is big.", "Love is all.", "Book of hours", "Empires fall", "12"],
    ),
    (
        "words:vowel",
        {},
        ["Dogs run on. Go!", "A man can sing", "Brr"],
        ["Dogs run in Spain", "Dogs run.\n\nDogs go.", "-"],
    ),
    (
        "words:words_position",
        {"keyword": "rain"},
        ["The rain is the rain now", "so Rain rain, x"],
        ["The rain is now", "The rain", "rain is rain", "Now rain is the rain"],
    ),
]

# The prompts of checkers that read them.
PROMPTS = {
    "count:person_names": "Mention at least 2 names from this list of person names: Emma, Liam, Zoe .",
}
