"""Four people whom one can work out by hand, and a request that two of them suit."""

from lockstep.environments.talent.constraints import Constraint, Preference
from lockstep.environments.talent.desk import Desk
from lockstep.environments.talent.grading import grade
from lockstep.environments.talent.people import Company, Job, Person, Skill
from lockstep.environments.talent.requests import Request

VELTRO = Company(name="Veltro", industry="fintech", people=40, country="Spain")


def person(
    id_: int, years: int, city: str, salary: int, mode: str, *, is_open: bool, name: str = "Ana Costa"
) -> Person:
    return Person(
        id=id_,
        name=name,
        city=city,
        role="backend engineer",
        seniority="senior",
        skills=(Skill(name="Rust", written="Rustlang", years=years),),
        jobs=(Job(company=VELTRO, start=2010, end=None),),
        languages=(("Portuguese", "native"),),
        degree="none",
        field="physics",
        salary=salary,
        notice=4,
        mode=mode,
        open_to_work=is_open,
        summary="Enjoys Rust work.",
    )


ANA = person(104, 6, "Lisbon", 75, "on site", is_open=True)  # right before the change, too dear after it


BEN = person(105, 5, "Porto", 70, "hybrid", is_open=True, name="Ben Silva")  # right, and liked with a weight of 3


EVA = person(106, 8, "Lisbon", 66, "remote", is_open=False, name="Eva Berg")  # right, not liked


TIM = person(107, 2, "Madrid", 60, "hybrid", is_open=True, name="Tim Wilk")  # meets one wish of three


RUST, HERE = Constraint(kind="skill", value="Rust", amount=5), Constraint(kind="place", value="Portugal")


BUDGET, LESS = Constraint(kind="salary", amount=75), Constraint(kind="salary", amount=70)


REQUEST = Request(
    number=2,
    text="We want to hire 2 people.",
    stated=(RUST, HERE),
    hidden=(BUDGET,),
    soft=(
        Preference(constraint=Constraint(kind="mode", value="hybrid"), weight=2),
        Preference(constraint=Constraint(kind="open"), weight=1),
    ),
    change=LESS,
    trigger="proposal",
    right=frozenset({105, 106}),
    best_liking=3,
    par=10,
)


def quotes(one: Person) -> str:
    return f"Rustlang {one.skills[0].years}y; {one.country}; Salary {one.salary}k"


def put(desk: Desk, *people: Person, opened: bool = True, calls: int = 10) -> dict[str, float]:
    """Shortlist these people with perfect quotes, and grade as after so many calls."""
    for one in people:
        if opened:
            desk.open_profile(one.id)
        desk.shortlist(one.id, quotes(one))
    desk.num_calls = calls
    return grade(desk, delivered=True)


def requests_of(tasks) -> list[Request]:
    return [task.data["request"] for task in tasks]
