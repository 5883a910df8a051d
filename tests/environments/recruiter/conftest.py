"""The easy and the standard environment, small, and their tasks."""

import pytest

from lockstep.environments.recruiter import Recruiter
from lockstep.environments.talent.database import Database, database_of
from lockstep.environments.talent.desk import Desk
from lockstep.environments.talent.people import Population
from tests.environments.recruiter.people import ANA, BEN, EVA, REQUEST, TIM


@pytest.fixture(scope="session")
def easy() -> Recruiter:
    return Recruiter(
        difficulty="easy", num_people=320, page_size=4, num_train=60, num_heldout=30, num_demonstrations=30
    )


@pytest.fixture(scope="session")
def standard() -> Recruiter:
    return Recruiter(num_people=4000, num_heldout=8, num_train=12, seed=1)


@pytest.fixture(scope="session")
def tasks(easy):
    return easy.tasks("heldout")


@pytest.fixture(scope="session")
def standard_tasks(standard):
    return standard.tasks("heldout")


@pytest.fixture(scope="session")
def train_tasks(easy):
    return easy.tasks("train")


@pytest.fixture(scope="session")
def database() -> Database:
    population = Population(seed=0, num_people=4)
    population.__dict__["people"] = (ANA, BEN, EVA, TIM)
    return Database(population)


@pytest.fixture
def desk(database) -> Desk:
    return Desk(database, REQUEST, page_size=2)


@pytest.fixture(scope="session")
def wide() -> Database:
    """3000 people as in the standard variant."""
    return database_of(5, 3000, False)
