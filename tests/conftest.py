"""Options of the tests."""


def pytest_addoption(parser):
    parser.addoption(
        "--kills", type=int, default=5, help="trainings to kill in the tests of interruptions"
    )
    parser.addoption(
        "--soak-steps", type=int, default=60, help="steps of each of the two long trainings"
    )
