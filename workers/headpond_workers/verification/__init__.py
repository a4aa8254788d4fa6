"""Whether what is stored and installed now still gives a result that was stored before."""
