"""The reward of a shortlist, in named parts that sum to at most 1, each a function of what was done and of the request.

S is the shortlist, n the number of people asked for, R the people who meet every hard wish of the final intent (what
was said, what was hidden, and the change, whether the agent learned of them or not). Every part but the last is an
average over max(n, |S|) places, so that one too many costs as much as one too few, and an empty place counts 0.

    precision    0.35 * |S & R| / max(n, |S|)
    constraints  0.10 * share of the final hard wishes that a person meets beyond half of them, 2 * max(0, share - 1/2)
    soft         0.15 * weights of preferences met by those of S in R, over the most that n people of R can have; where
                 nobody can be liked, as `precision`
    grounded     0.25 * what each person's justification shows: of the final hard wishes, those for which a quote holds
                 the evidence, less the quotes that are not in the profile, over the number of wishes, and not below 0;
                 times the share of evidence among the words quoted, doubled, at most 1. A quote counts only when this
                 trajectory has opened that person's profile.
    calls        0.15 * precision's share * 1 up to the request's par, from there falling in a straight line to 0 at
                 twice the par

Without a final message to the user nothing has been delivered, and every part is 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lockstep.environments.talent.constraints import Constraint, evidence, liking, meets
from lockstep.environments.talent.desk import Desk, quotes_of
from lockstep.environments.talent.people import Person
from lockstep.environments.talent.profile import within, words

WEIGHTS: Mapping[str, float] = {"precision": 0.35, "constraints": 0.1, "soft": 0.15, "grounded": 0.25, "calls": 0.15}


def grade(desk: Desk, *, delivered: bool) -> dict[str, float]:
    """The parts; see above. delivered: the trajectory ended with a final message."""
    if not delivered or not desk.shortlisted:
        return dict.fromkeys(WEIGHTS, 0.0)
    request, people = desk.request, desk.database.population.by_id
    listed = [people[id_] for id_ in desk.shortlisted]
    places = max(request.number, len(listed))
    right = [person for person in listed if person.id in request.right]
    precision = len(right) / places
    if request.best_liking:
        liked = sorted((liking(person, request.soft) for person in right), reverse=True)[: request.number]
        soft = min(1.0, sum(liked) / request.best_liking) * request.number / places
    else:
        soft = precision
    grounded = (
        shown(person, request.final, desk.shortlisted[person.id], desk.opened.get(person.id)) for person in listed
    )
    shares = {
        "precision": precision,
        "constraints": sum(_beyond_half(person, request.final) for person in listed) / places,
        "soft": soft,
        "grounded": sum(grounded) / places,
        "calls": precision * min(1.0, max(0.0, 2 - desk.num_calls / request.par)),
    }
    return {name: WEIGHTS[name] * share for name, share in shares.items()}


def _beyond_half(person: Person, wishes: Sequence[Constraint]) -> float:
    return max(0.0, 2 * sum(meets(person, wish) for wish in wishes) / len(wishes) - 1)


def shown(person: Person, wishes: Sequence[Constraint], justification: str, profile: str | None) -> float:
    """How well a justification shows that the person meets the wishes, 0 to 1. profile: the text that was opened, None
    when none was."""
    if profile is None:
        return 0.0
    quotes, whole = [words(quote) for quote in quotes_of(justification)], words(profile)
    true = [quote for quote in quotes if within(quote, whole)]
    covered, needed = 0, 0
    for wish in wishes:
        fragments = [words(fragment) for fragment in evidence(person, wish)]
        found = [fragment for fragment in fragments if any(within(fragment, quote) for quote in true)]
        covered += bool(found)
        needed += min(map(len, found), default=0)
    said = sum(map(len, quotes))
    share = max(0, covered - (len(quotes) - len(true))) / len(wishes)
    return share * min(1.0, 2 * needed / said) if said else 0.0
