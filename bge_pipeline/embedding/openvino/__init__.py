"""Networks on OpenVINO, on the CPU: converted once, kept in a cache, run several batches at a time.

`conversion` makes a converted network in a child process, `recipe` says when it has to be made again, `cache` keeps it and
judges int8, `layouts` says how texts are laid out for it, and `backend` runs it.
"""
