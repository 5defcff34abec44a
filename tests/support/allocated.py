"""What PyTorch allocates on a CPU."""

from __future__ import annotations

from torch.profiler import ProfilerActivity, profile


def allocated(run):
    """Return the most bytes that PyTorch had allocated in a run, beside those of what is there before it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most
