"""Baselines whose first mask stays: what it prunes stays zero. And the dense model."""

from parp_cli.pruning.methods.spec import MethodSpec

DENSE = MethodSpec(name="dense", description="nothing is pruned", reads=(), starts_from="nothing")
FIXED = MethodSpec(name="fixed", description="what the first mask prunes stays zero")
MPI = MethodSpec(name="mpi", description="as fixed, with a mask of the pre-trained magnitudes", starts_from="magnitude")
RP = MethodSpec(name="rp", description="as fixed, with a random mask", starts_from="random")
