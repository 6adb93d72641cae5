"""Parameters that several processes hold together: what is exchanged of them in a step, and between whom."""
