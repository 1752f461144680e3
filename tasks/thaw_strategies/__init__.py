"""Thaw strategies: one file each, found by its name.

A strategy is a module with `plan(layers, params) -> list[Phase]`: which layers learn in which
phase and how fast. It sees the names and costs of layers (the last one is `head`), so it needs no
torch. Rates are relative to `train.learning_rate`.

A strategy of several phases, each of `freeze.phase_epochs` before the last, says `PHASES`, how many
there are at most, so that too few epochs are refused before anything has run.

A strategy whose head looks at more than the last layer also has `reading(layers, params) ->
Reading`: the layers whose pooled outputs it reads.

A strategy that may have to try has `choose(selection, params, race, share) -> (list[Phase], str)`
instead: the phases and why, with the losses that `race` gives for phases, each trained for that
`share` of the epochs of a whole training.
"""
