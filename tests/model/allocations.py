"""What a call allocates at most, counted by PyTorch's own allocator hooks: the same number on every machine."""

from torch.profiler import ProfilerActivity, profile


def peak_bytes(function):
    """(the largest sum of bytes that were allocated since the call began and not yet freed, the call's result).

    What lived before is not counted; freeing it counts nothing. CPU only.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = function()
    changes = []
    pending = list(profiler.profiler.kineto_results.experimental_event_tree())
    while pending:
        event = pending.pop()
        pending.extend(event.children)
        if event.tag.name == "Allocation":
            changes.append((event.start_time_ns, event.extra_fields.ptr, event.extra_fields.alloc_size))
    alive, total, peak = {}, 0, 0
    for _, pointer, size in sorted(changes, key=lambda change: change[0]):
        if size > 0:
            alive[pointer] = size
            total += size
        else:
            total -= alive.pop(pointer, 0)
        peak = max(peak, total)
    return peak, result
