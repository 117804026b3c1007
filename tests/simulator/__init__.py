"""A mesh in virtual time: the real rules of `mesh.core`, and a made-up world around them.

Hundreds of nodes, callers and a master live on one heap of events, seconds of theirs pass in
milliseconds, and the same seed gives the same run. What is real: failure detector, breakers (the
callers' own and the shared ones), peer load, balancer, retry budget, hedging, selection. What is
made up: the network, what nodes do, and the thin shells around the rules.
"""
