"""Parts that launcher, schedulers and server share: log, control channel, study key, processes."""
