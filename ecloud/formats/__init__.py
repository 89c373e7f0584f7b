"""Read users' task lists: returns `TaskDefinition`s, or all problems together. Pure: bytes in, values out."""

from ecloud.formats.checking import check
from ecloud.formats.problems import Problem, TaskList, TaskListWrong
from ecloud.formats.reading import FORMATS, ReadOptions, TooManyCombinations, read_task_list
from ecloud.formats.scaled import initial_input_bytes

__all__ = [
    "FORMATS",
    "Problem",
    "ReadOptions",
    "TaskList",
    "TaskListWrong",
    "TooManyCombinations",
    "check",
    "initial_input_bytes",
    "read_task_list",
]
