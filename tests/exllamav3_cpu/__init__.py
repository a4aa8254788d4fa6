"""exllamav3's own generator on a CPU, for tests: stand-ins for its compiled part, for Triton, and for the forward pass.

Everything else is the installed package: Config, Model (constructed, never loaded), Cache, Tokenizer, Generator, Job,
the page table and the samplers. It runs in a child process, since the stand-ins would be in the way of other tests.
"""
