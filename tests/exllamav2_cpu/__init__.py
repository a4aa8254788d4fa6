"""The real exllamav2 package on the CPU, for tests.

    from exllamav2_cpu import harness
    stand_in = harness.install()      # before anything imports exllamav2

exllamav2's Python code runs as it is: configuration, model, caches, tokenizer, LoRA, generator, sampler, filters.
Only its compiled module and flash-attn's three functions are replaced, by plain torch (`kernels`, `quantised_cache`,
`host_functions`, `sampling`, `flash_attention`), and torch.cuda is told of devices that are the CPU. It says nothing
about CUDA kernels, quantised weights, tensor parallel or the numerics of a GPU.
"""
