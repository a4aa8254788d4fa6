"""A random machine on the queue's scripts: any order of calls, on a real server with a virtual clock.

    snapshot.py      all that the server holds of the queue, by one EVAL
    jobs.py          what must be true of one acknowledged job
    fairness.py      whose turn it is, and what each tenant was served
    reader.py        what one reader has of one stream
    workers.py       what the worker processes know, also those that were replaced
    model.py         the above together: the server's part, that can go back in time, and the part that cannot
    sweeping.py      what time alone brings about
    answers.py       what each call must answer, and what is true after it
    claims.py        what a claim must hand out, and in which order
    invariants.py    what is true at every moment
    world.py         the server, the clock, one call and its repeat
    calls.py         one call of the machine, and all that is checked after it
    producers.py, writers.py, preemption.py, zombies.py, upkeep.py, moments.py, switching.py, going_back.py
                     what may be done next: the rules
    machine.py       all rules together, and a run of many steps
    mutations.py     scripts with a rule taken out, to show that the machine can fail
    __main__.py      many steps by hand: python -m queue_machine --seeds 1-40 --steps 25000

The model says what each call must answer and what every row must be then; where scripts are free, as in which job a
worker is told to park, it says what is allowed. Every other call or so is repeated at once, as after a lost reply.
"A server goes back" is most often a fail-over: the keys of an earlier moment are put back, and another server's hello
is said. A few examples do it in earnest: SIGKILL, the AOF of that moment, and a new connection's greeting.

After each call the invariants of the protocol are checked: 1 (one place), 2 (fences), 3 and 4 (streams and readers),
5 (ends), 6 (wake tokens), 7 (strikes), 9 (repeats), 10 (tenants' lag, and until when each has paid). Invariant 8,
what storage folds to, and sessions, the rest of 10, have no scripts to call yet; they are not checked here.
"""
