"""What the sidecar measures by itself: GPUs through NVML, the host, and the trainers' processes.

- `gpu_host.GpuSampler` is the daemon's end of the GPU sampler; `gpu` is its process, in which
  `nvml` asks the driver; `gpu_sample` is what travels between them, and what tags it becomes.
- `host.HostSampler` reads /proc, in the daemon itself.

Nothing is imported here: the GPU sampler's process runs through this file, and stays small.
"""
