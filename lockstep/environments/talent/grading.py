"""The reward of a shortlist, in named parts that sum to at most 1, each a function of what was done and of the request.

S is the shortlist, n the number of people asked for, R the people who meet every hard wish of the final intent (what
was said, what was hidden, and the change, whether the agent learned of them or not), places = max(n, |S|): one too many
costs as much as one too few. For a person i of S

    g_i = max(0, wishes that a true quote of i's justification shows - quotes that are not in the profile) / wishes
          * min(1, 2 * words of evidence / words quoted) ^ 2,    and 0 unless this trajectory opened i's profile
    k_i = (1 + 2 * g_i) / 3     a person for whom nothing is shown counts a third

so that a profile copied as a justification shows little, and makes the person count for little. With

    c = 1 up to the request's par of calls, from there falling in a straight line to 0 at twice the par
    e = (1 + c) / 2             every part but `calls` is halved by the time that c is 0

the parts are

    precision    0.35 * e * sum of k_i over S & R / places
    constraints  0.10 * e * sum over S of k_i * 2 * max(0, share of the final hard wishes that i meets - 1/2) / places
    soft         0.15 * e * sum over the n best of S & R of k_i * weights of the preferences i meets, over the most that
                 n people of R can have, * n / places; where nobody can be liked, `precision` instead
    grounded     0.25 * e * sum of g_i over S / places
    calls        0.15 * c * sum of k_i over S & R / places

They are products on purpose: a right person who is not shown to be right, or is found by opening everything, is not
what was asked for, and a part that only adds would leave the rest for free.

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
    grounded = {
        person.id: shown(person, request.final, desk.shortlisted[person.id], desk.opened.get(person.id))
        for person in listed
    }
    credit = {id_: (1 + 2 * share) / 3 for id_, share in grounded.items()}
    right = [person for person in listed if person.id in request.right]
    precision = sum(credit[person.id] for person in right) / places
    if request.best_liking:
        liked = sorted((credit[person.id] * liking(person, request.soft) for person in right), reverse=True)
        soft = sum(liked[: request.number]) / request.best_liking * request.number / places
    else:
        soft = precision
    calls = min(1.0, max(0.0, 2 - desk.num_calls / request.par))
    economy = (1 + calls) / 2
    shares = {
        "precision": economy * precision,
        "constraints": economy * sum(credit[one.id] * _beyond_half(one, request.final) for one in listed) / places,
        "soft": economy * soft,
        "grounded": economy * sum(grounded.values()) / places,
        "calls": calls * precision,
    }
    return {name: WEIGHTS[name] * share for name, share in shares.items()}


def _beyond_half(person: Person, wishes: Sequence[Constraint]) -> float:
    return max(0.0, 2 * sum(meets(person, wish) for wish in wishes) / len(wishes) - 1)


def shown(person: Person, wishes: Sequence[Constraint], justification: str, profile: str | None) -> float:
    """How well a justification shows that the person meets the wishes, 0 to 1 (g_i above). profile: the text that was
    opened, None when none was."""
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
    return share * min(1.0, 2 * needed / said) ** 2 if said else 0.0
