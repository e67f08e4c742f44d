"""Options of the tests."""


def pytest_addoption(parser):
    parser.addoption(
        "--kills", type=int, default=5, help="trainings to kill in the tests of interruptions"
    )
