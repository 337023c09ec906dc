"""The two ways a command ends early, and the exit codes of the outer command."""

DONE = 0
FAILED = 1
USAGE = 2
QUARANTINED = 3
REQUEUE = 75


class UserError(Exception):
    """Something the user can mend. The message says what is wrong, where, and what to do."""


class Stopped(Exception):
    """A preemption signal arrived; what was finished is kept and the next start goes on."""
