"""Requests drawn from a database, with known right people.

A request is drawn around one person, and kept when enough people suit it, few enough profiles have to be read, a search
alone does not tell who is right, and neither who does not ask nor who does not notice the change can meet it.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, reduce
from operator import and_

from lockstep.environments.held_out import is_held_out
from lockstep.environments.talent.constraints import Constraint, Preference, filters_of, liking, meets
from lockstep.environments.talent.database import Database
from lockstep.environments.talent.requests import Request, Split, changed, query_of, subject_of
from lockstep.environments.talent.vocabulary import RECRUITER
from lockstep.environments.talent.wishes import CHANGING, Wishes
from lockstep.environments.talent.wording import MUSTS, NICE, OPENINGS, opened, preferred, write
from lockstep.types import UserError

HELDOUT_SHARE = 8  # one subject in so many is held out
MOST_RIGHT = 10  # people who suit a request in the end
FILTERED = ("skill", "place", "salary", "language", "open")  # kinds that a search goes by, all but a skill's years
MOST_WISHES = 6  # hard ones that a search goes by or that make the right people few
MOST_DRAWS = 2000  # for each request, on average
PATIENCE = 10  # so many requests' draws before the first
MOST_TRIES = 16  # at a request with the same hard wishes


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What requests are drawn. most_people: asked for at once; kinds: of the hard wishes beside a skill and a place;
    hideable: those that may be kept secret, num_hidden at most; preferred: kinds of the preferences, num_preferred at
    most; least_right: people who suit it, before the change and after; most_read: people whom a search with every
    filter finds, before the change, and new ones after it; least_wrong: those of them who do not suit it in the end."""

    most_people: int
    kinds: tuple[str, ...]
    hideable: tuple[str, ...]
    num_hidden: int
    preferred: tuple[str, ...]
    num_preferred: int
    least_right: int
    most_read: int
    least_wrong: int


STANDARD = Shape(
    most_people=4,
    kinds=("skill", "language", "seniority", "degree", "now", "before", "mode", "open", "salary", "notice"),
    hideable=("salary", "notice", "mode", "language", "open", "degree"),
    num_hidden=2,
    preferred=("skill", "size", "before", "degree", "mode", "seniority"),
    num_preferred=2,
    least_right=3,
    most_read=14,
    least_wrong=3,
)
EASY = Shape(
    most_people=1,
    kinds=("salary", "language", "notice"),
    hideable=("salary", "language", "notice"),
    num_hidden=1,
    preferred=("mode",),
    num_preferred=1,
    least_right=1,
    most_read=3,
    least_wrong=1,
)


class Drawing:
    """Draws requests on one database. A set of people is a number whose bit i stands for person i: quick to intersect
    and to count, where the sets are tried by the thousand."""

    def __init__(self, database: Database, shape: Shape) -> None:
        self.database, self.shape = database, shape
        self.people = database.population.people
        self._everybody = (1 << len(self.people)) - 1
        self._meeting: dict[Constraint, int] = {}
        self._searched: dict[Constraint, int] = {}
        self._place = {person.id: i for i, person in enumerate(self.people)}
        self._having: dict[str, list[int]] = {}
        for i, person in enumerate(self.people):
            for skill in person.skills:
                self._having.setdefault(skill.name, []).append(i)

    def draw(self, random_: random.Random, split: Split, *, changes: bool) -> Request | None:
        """One request of the split, with or without a change, or None when what was drawn makes no good one."""
        shape, anchor = self.shape, random_.choice(self.people)
        if len(anchor.skills) < 3 or anchor.role == RECRUITER:
            return None
        wishes = Wishes(random_, anchor, self.database.population)
        hard = self._hard(random_, wishes)
        if not any(wish.kind in shape.hideable for wish in hard) or not _is_of(split, hard):
            return None
        skills = list(wishes.skills)
        for _ in range(MOST_TRIES):
            wishes.skills[:] = skills
            request = self._try(random_, wishes, hard, split, changes=changes)
            if request is not None:
                return request
        return None

    def _try(
        self, random_: random.Random, wishes: Wishes, hard: Sequence[Constraint], split: Split, *, changes: bool
    ) -> Request | None:
        """A request with these hard wishes: what is hidden, preferred and changed is drawn."""
        shape = self.shape
        number = random_.randint(min(2, shape.most_people), shape.most_people)
        hideable = [wish for wish in hard if wish.kind in shape.hideable]
        hidden = random_.sample(hideable, min(len(hideable), random_.randint(1, shape.num_hidden)))
        stated = [wish for wish in hard if wish not in hidden]
        kinds = random_.sample(shape.preferred, random_.randint(1, shape.num_preferred))
        soft = [Preference(constraint=wishes.draw(kind), weight=random_.choice((1, 2))) for kind in kinds]
        taken = {(wish.kind, wish.value) for wish in hard}
        if any((one.constraint.kind, one.constraint.value) in taken for one in soft):
            return None
        change = self._change(random_, wishes, hard, split) if changes else None
        if changes and change in (None, *hard):
            return None
        return self._finished(random_, number, stated, hidden, soft, change)

    @staticmethod
    def _change(random_: random.Random, wishes: Wishes, hard: Sequence[Constraint], split: Split) -> Constraint | None:
        """A change of one of the wishes that stays within the split, if there is one."""
        changing = random_.choice(CHANGING)
        movable = [wish for wish in hard if wish.kind == changing]
        if not movable:
            return None
        wish = random_.choice(movable)
        drawn = (wishes.change(wish) for _ in range(MOST_TRIES))
        return next((change for change in drawn if _is_of(split, changed(hard, change))), None)

    def _hard(self, random_: random.Random, wishes: Wishes) -> list[Constraint]:
        """Hard wishes, as many as it takes until few enough people suit them and have to be read; empty when it cannot
        be done."""
        hard = [wishes.draw("skill"), wishes.draw("place")]
        suited, found = self.suited(hard), self._least_found(hard)
        # What a search can go by comes early more often than not: it is what makes the profiles to read few.
        for kind in sorted(self.shape.kinds, key=lambda kind: random_.random() * (0.5 if kind in FILTERED else 1)):
            if len(hard) == MOST_WISHES:
                break
            wish = wishes.draw(kind)
            left = suited & self._who(wish)
            if left.bit_count() < self.shape.least_right or left == suited:
                continue
            hard.append(wish)
            suited, found = left, found & self._least_found([wish])
            if suited.bit_count() <= MOST_RIGHT and found.bit_count() <= self.shape.most_read:
                return [*hard, *self._unfiltered(random_, wishes, hard, suited)]
        return []

    def _unfiltered(
        self, random_: random.Random, wishes: Wishes, hard: Sequence[Constraint], suited: int
    ) -> list[Constraint]:
        """More often than not one further wish that can be kept secret, and that only profiles show."""
        taken = {*FILTERED, *(wish.kind for wish in hard)}
        kinds = [kind for kind in self.shape.hideable if kind not in taken]
        if not kinds or random_.random() < 0.3:
            return []
        wish = wishes.draw(random_.choice(kinds))
        left = suited & self._who(wish)
        return [wish] if left != suited and left.bit_count() >= self.shape.least_right else []

    def suited(self, wishes: Sequence[Constraint]) -> int:
        """The set of people who meet all the wishes."""
        return reduce(and_, map(self._who, wishes), self._everybody)

    def ids(self, people: int) -> frozenset[int]:
        """The ids of a set of people, a small one."""
        found = set()
        while people:
            lowest = people & -people
            found.add(self.people[lowest.bit_length() - 1].id)
            people ^= lowest
        return frozenset(found)

    def _who(self, wish: Constraint) -> int:
        if wish not in self._meeting:
            places = self._having.get(wish.value, ()) if wish.kind == "skill" else range(len(self.people))
            self._meeting[wish] = self._set(i for i in places if meets(self.people[i], wish))
        return self._meeting[wish]

    def _set(self, places: Iterable[int]) -> int:
        bits = bytearray(len(self.people) // 8 + 1)
        for i in places:
            bits[i // 8] |= 1 << i % 8
        return int.from_bytes(bits, "little")

    def _least_found(self, wishes: Sequence[Constraint]) -> int:
        """Whom a search with these wishes finds at the least; quicker than the search itself."""
        known = [replace(wish, amount=0) if wish.kind == "skill" else wish for wish in wishes if wish.kind in FILTERED]
        return self.suited(known)

    def _found(self, wishes: Sequence[Constraint]) -> int:
        """Whom a search with every word and filter of these wishes finds, decoys and all."""
        return reduce(and_, map(self._by_search, wishes), self._everybody)

    def _by_search(self, wish: Constraint) -> int:
        key = replace(wish, amount=0) if wish.kind == "skill" else wish
        if wish.kind not in FILTERED:
            return self._everybody
        if key not in self._searched:
            ids = self.database.everyone(query_of([key]), filters_of([key]))
            self._searched[key] = self._set(self._place[id_] for id_ in ids)
        return self._searched[key]

    def _finished(
        self,
        random_: random.Random,
        number: int,
        stated: Sequence[Constraint],
        hidden: Sequence[Constraint],
        soft: Sequence[Preference],
        change: Constraint | None,
    ) -> Request | None:
        before = (*stated, *hidden)
        after = changed(before, change)
        suited = self.suited(before), self.suited(after)
        if not max(number, self.shape.least_right) <= suited[1].bit_count() <= MOST_RIGHT:
            return None
        if suited[0].bit_count() < number:
            return None
        if self.suited(stated).bit_count() < 2 * suited[0].bit_count():
            return None  # who does not ask would hardly notice
        if self._least_found(after).bit_count() > self.shape.most_read:
            return None
        then, right = map(self.ids, suited)
        likings = {id_: liking(self.database.population.by_id[id_], soft) for id_ in then | right}
        best = sorted(then, key=lambda id_: (-likings[id_], id_))[:number]
        kept = sum(id_ in right for id_ in best)
        if change is not None and 2 * kept > number:
            return None  # who ignores the change would hardly notice
        found, most = (self._found(before), self._found(after)), self.shape.most_read
        if found[0].bit_count() > most or (found[1] & ~found[0]).bit_count() > most:
            return None
        if (found[1] & ~suited[1]).bit_count() < self.shape.least_wrong:
            return None
        # A search and its next page, a message, who leaves the shortlist, who comes.
        again = 0 if change is None else 3 + 2 * (number - kept)
        return Request(
            number=number,
            text=_text(random_, number, stated, soft),
            stated=tuple(stated),
            hidden=tuple(hidden),
            soft=tuple(soft),
            change=change,
            trigger=random_.choice(("proposal", "profiles")),
            right=right,
            best_liking=sum(sorted((likings[id_] for id_ in right), reverse=True)[:number]),
            par=5 + (found[0] | found[1]).bit_count() + number + again,
        )


def _is_of(split: Split, hard: Sequence[Constraint]) -> bool:
    return is_held_out(subject_of(hard), one_in=HELDOUT_SHARE) == (split == "heldout")


def _text(random_: random.Random, number: int, stated: Sequence[Constraint], soft: Sequence[Preference]) -> str:
    said = [write(wish, random_.randrange(6)) for wish in random_.sample(stated, len(stated))]
    opening = opened(number, random_.randrange(len(OPENINGS)))
    must = random_.choice(MUSTS).format(wishes=", ".join(said))
    nice = random_.choice(NICE).format(wishes=preferred(soft, [random_.randrange(6) for _ in soft]))
    return f"{opening} {must} {nice}"


@lru_cache(maxsize=4)
def drawing_on(database: Database, shape: Shape) -> Drawing:
    """One for each database and shape, with what it has counted so far."""
    return Drawing(database, shape)


def drawn(database: Database, shape: Shape, split: Split, count: int, stream: str) -> list[Request]:
    """The first `count` distinct requests of a split, in an order fixed by the stream's name; every other one changes.

    Raises UserError when the database has too few people for so many requests.
    """
    random_, drawing = random.Random(f"recruiter {stream}"), drawing_on(database, shape)
    found: dict[str, Request] = {}
    draws = 0
    while len(found) < count and draws < MOST_DRAWS * (len(found) + PATIENCE):
        draws += 1
        request = drawing.draw(random_, split, changes=len(found) % 2 == 1)
        if request is not None:
            found.setdefault(repr((request.opening, sorted(request.hidden), request.change)), request)
    if len(found) < count:
        raise UserError(
            f"environment.num_people={database.population.num_people}: {count} distinct {split} requests were wanted "
            f"and {len(found)} found in {draws} draws; have more people, or ask for fewer requests"
        )
    return list(found.values())
