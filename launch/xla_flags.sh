# shellcheck shell=bash
# Sets flags of XLA and the allocator for the hardware: . launch/xla_flags.sh cpu|gpu|tpu
# The caller's own flags come last and win: if a flag is given twice, the last one counts.
case "${1:?give the hardware: cpu, gpu or tpu}" in
cpu)
  # Put large temporaries on huge pages: otherwise page faults take much of a training step.
  export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"
  ;;
gpu)
  # Overlap collectives with computation that does not depend on them.
  XLA_FLAGS="--xla_gpu_enable_latency_hiding_scheduler=true ${XLA_FLAGS:-}"
  # Combine gradients and weights into fewer, larger messages, which use NVLink and InfiniBand fully.
  XLA_FLAGS="--xla_gpu_all_gather_combine_threshold_bytes=268435456 $XLA_FLAGS"
  export XLA_FLAGS="--xla_gpu_reduce_scatter_combine_threshold_bytes=268435456 $XLA_FLAGS"
  # Reserve nearly all memory at once: allocating piece by piece fragments it.
  export XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.94}"
  ;;
tpu)
  # Overlap the all-gathers and reduce-scatters of fsdp with matrix products.
  flags="--xla_tpu_enable_async_collective_fusion=true --xla_tpu_enable_async_collective_fusion_fuse_all_gather=true"
  flags="$flags --xla_tpu_enable_async_collective_fusion_multiple_steps=true --xla_tpu_overlap_compute_collective_tc=true"
  export LIBTPU_INIT_ARGS="$flags ${LIBTPU_INIT_ARGS:-}"
  unset flags
  ;;
*)
  echo "launch/xla_flags.sh: unknown hardware $1, not one of cpu, gpu, tpu" >&2
  return 2
  ;;
esac
