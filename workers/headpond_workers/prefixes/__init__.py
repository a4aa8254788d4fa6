"""Stored keys and values of prompts: what a worker goes on from instead of reading a prompt again.

    job ends -> copy of its slot -> file in the local store -> link in the outbox -> persister -> storage
    job begins -> longest stored beginning -> quicker than prefill, by measured rates? -> file -> engine -> checked

It saves time and is never needed: whatever fails here is counted, logged, and the prompt is prefilled. Files are
described in docs/kv-format.md, the policy in docs/operation.md.
"""
