"""What is promised of conversations, also where Redis was lost amid them: each rule says what is wrong. No I/O."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from headpond.commits import Commit


def judge_session(name: str, chain: Sequence[Commit], jobs: Sequence[str], answers: Mapping[str, str]) -> Iterator[str]:
    """chain: its commits, from the first one to the head. jobs: ids of its jobs that were not lost, in the order of
    their submits. answers: texts of their results."""
    parent = ""
    for number, commit in enumerate(chain, start=1):
        if commit.parent != parent or commit.turns != number:
            yield f"session {name}: commit {number} of its chain does not follow the one before"
        parent = commit.id
        if commit.messages[-1].content != answers.get(commit.job):
            yield f"session {name}: its commit of {commit.job} holds another answer than the job's result"
    made = [commit.job for commit in chain]
    if made != list(jobs):
        yield f"session {name}: its turns are {', '.join(made) or 'none'}, and were submitted as {', '.join(jobs)}"
