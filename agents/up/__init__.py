"""`mesh-agent up`: a whole mesh on one machine, each part a process of its own."""
