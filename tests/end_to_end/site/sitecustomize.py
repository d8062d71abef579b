"""Processes of one run share compiled programs; on the PYTHONPATH of multi-process tests only.

JAX lets only process 0 write its compilation cache. On CPUs the other processes do not find what it wrote, because a
part of a program's key is a fingerprint of the topology, which differs between processes. Here it is the devices' kind.
"""

import os

if "JAX_PROCESS_ID" in os.environ:  # not in the Python programs that launch scripts call
    from jax._src import cache_key

    cache_key._hash_accelerator_config = cache_key._hash_devices
