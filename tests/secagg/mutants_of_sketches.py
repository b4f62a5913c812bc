"""The guards of the sketch; see `mutants.py`."""

from mutant import Mutant

K = "test_sketch.py"
SKETCHES = (
    Mutant(
        "sketch: values that wrap accepted",
        "sketch.py",
        "if not float(np.abs(projected).max()) < LIMIT:",
        "if False:",
        "would_wrap",
        K,
    ),
    Mutant(
        "sketch: no blind",
        "sketch.py",
        "integers + (offset >> np.uint64(32)).astype(np.int64)",
        "integers",
        "common_shift",
        K,
    ),
    Mutant(
        "sketch: one projection for all layers",
        "sketch.py",
        'layer.to_bytes(4, "big"), size',
        "bytes(4), size",
        "one_layers_projection",
        K,
    ),
    Mutant(
        "sketch: seed commitment unchecked",
        "sketch.py",
        "if seed is None or _commitment(group, seed) != message.commitment:",
        "if seed is None:",
        "false_seal",
        K,
    ),
    Mutant(
        "sketch: own hello not looked for",
        "sketch.py",
        "if group.hellos.get(state.name) != ",
        "if False and ",
        "slip_its_own_key",
        K,
    ),
    Mutant(
        "sketch: shared keys accepted",
        "sketch.py",
        "if hello.channel_key in taken:",
        "if False:",
        "equal_keys",
        K,
    ),
    Mutant(
        "sketch: any scale",
        "sketch.py",
        "if not SMALLEST_SCALE <= message.scale <= LARGEST_SCALE:",
        "if False:",
        "another_shape",
        K,
    ),
    Mutant(
        "sketch: odd ones kept",
        "sketch.py",
        "if _terms(message) != usual:",
        "if False:",
        "another_shape",
        K,
    ),
)
