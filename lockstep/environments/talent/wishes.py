"""Wishes drawn around a person: such that the person meets them, as a rule, and changes of them."""

from __future__ import annotations

import random
from dataclasses import replace

from lockstep.environments.talent.constraints import Constraint
from lockstep.environments.talent.people import Person, Population
from lockstep.environments.talent.vocabulary import DEGREES, SENIORITIES

CHANGING = ("salary", "salary", "notice", "notice", "skill", "place")  # kinds that can change, and how often they do


class Wishes:
    """Draws wishes that the anchor meets, and changes of them."""

    def __init__(self, random_: random.Random, anchor: Person, population: Population) -> None:
        self.random, self.anchor, self.population = random_, anchor, population
        self.skills = random_.sample(anchor.skills, len(anchor.skills))

    def draw(self, kind: str) -> Constraint:
        random_, person = self.random, self.anchor
        value, amount = "", 0
        match kind:
            case "skill":
                skill = self.skills.pop()
                value, amount = skill.name, max(2, skill.years - random_.randint(0, 4))
            case "place":
                value = person.city if self.population.narrow or random_.random() < 0.8 else person.country
            case "salary":
                amount = person.salary + random_.randint(0, 6)
            case "language":
                value = random_.choice([name for name, level in person.languages if level != "basic"])
            case "notice":
                amount = max(person.notice, random_.choice((4, 8, 12)))
            case "mode":
                value = person.mode
            case "now":
                value = person.jobs[0].company.industry
            case "before":
                value = random_.choice(person.jobs[1:] or person.jobs).company.industry
            case "seniority":
                value = SENIORITIES[max(1, SENIORITIES.index(person.seniority))]
            case "degree":
                value = DEGREES[max(1, DEGREES.index(person.degree))]
            case "size":
                value = random_.choice(person.jobs).company.size
        return Constraint(kind=kind, value=value, amount=amount)

    def change(self, wish: Constraint) -> Constraint:
        """The wish, of a kind that can change, as it may be later; now and then as it was."""
        random_ = self.random
        match wish.kind:
            case "salary":
                return replace(wish, amount=wish.amount - random_.randint(3, 12))
            case "notice":
                return replace(wish, amount=wish.amount // 2)
            case "skill":
                return replace(wish, amount=wish.amount + random_.randint(1, 3))
            case "place":
                return replace(wish, value=random_.choice(self.population.cities))
        raise ValueError(f"wishes of kind {wish.kind!r} do not change")
