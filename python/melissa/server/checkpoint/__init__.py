"""Checkpoints of a server: what each rank writes beside training, and how a restarted server goes on.

`folder` is the layout on disk, `manifest` what stands beside the data of each rank, `writing` how a
checkpoint comes about, `restart` how one is chosen and loaded, `study_state` what rank 0 knows of the
simulations.
"""
