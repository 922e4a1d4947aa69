"""Schedulers: how jobs are started, watched and ended on a machine or a cluster."""
