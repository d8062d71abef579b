# shellcheck shell=bash
# What XLA and the allocator should be told, by hardware: . launch/xla_flags.sh cpu|gpu|tpu
# Variables that are set already are added to, so that a caller's own flags win (the last of two equal flags counts).
case "${1:?give the hardware: cpu, gpu or tpu}" in
cpu)
  # Large temporaries on huge pages: without, much of a training step is page faults.
  export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"
  ;;
gpu)
  # Collectives run beside the computation that does not need them yet.
  XLA_FLAGS="--xla_gpu_enable_latency_hiding_scheduler=true ${XLA_FLAGS:-}"
  # Several gradients and weights go in one message: fewer, larger ones use NVLink and InfiniBand fully.
  XLA_FLAGS="--xla_gpu_all_gather_combine_threshold_bytes=268435456 $XLA_FLAGS"
  export XLA_FLAGS="--xla_gpu_reduce_scatter_combine_threshold_bytes=268435456 $XLA_FLAGS"
  # All but a little of the memory at once: asking piece by piece fragments it.
  export XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.94}"
  ;;
tpu)
  # All-gathers and reduce-scatters of fsdp run beside the matrix products.
  flags="--xla_tpu_enable_async_collective_fusion=true --xla_tpu_enable_async_collective_fusion_fuse_all_gather=true"
  flags="$flags --xla_tpu_enable_async_collective_fusion_multiple_steps=true --xla_tpu_overlap_compute_collective_tc=true"
  export LIBTPU_INIT_ARGS="$flags ${LIBTPU_INIT_ARGS:-}"
  unset flags
  ;;
*)
  echo "launch/xla_flags.sh: $1 is none of cpu, gpu, tpu" >&2
  return 2
  ;;
esac
