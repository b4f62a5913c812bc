"""The guards of kept activations, see `mutants.py`."""

from mutant import Mutant

M = Mutant
KEPT_FILE, LOWER, TRAINING = "client/kept.py", "model/lower.py", "client/training.py"
PARTICIPANT, SETTING, TESTS = "client/participant.py", "embedded/setting.py", "test_kept.py"

KEPT = (
    M(
        "kept activations: those of other rows are taken",
        KEPT_FILE,
        "return not self._over and key_of(self._backbone, self._job, table, slots) == self._key",
        "return not self._over",
        "of_other_rows_shapes_or_models",
        TESTS,
    ),
    M(
        "kept activations: their key leaves the rows out",
        KEPT_FILE,
        "    for row in table.tokens:\n",
        "    for row in ():\n",
        "of_other_rows_shapes_or_models",
        TESTS,
    ),
    M(
        "kept activations: their key leaves the model out",
        KEPT_FILE,
        'activations/v1\\n" + backbone.digest + shapes',
        'activations/v1\\n" + shapes',
        "of_other_rows_shapes_or_models",
        TESTS,
    ),
    M(
        "kept activations: computed above the first adapter",
        LOWER,
        "        handle = self._first.register",
        "        handle = list(self._model.base_model.encoder.layer)[-1].register",
        "is_the_step_without or no_value_of_an_adapter",
        TESTS,
    ),
    M(
        "kept activations: a row's depend on its neighbour",
        KEPT_FILE,
        "states = lower.states(batch).cpu()\n",
        "states = lower.states(batch).cpu()\n"
        "                states = states + 1e-6 * states.roll(1, 0)\n",
        "the_same_whoever_the_others_are",
        TESTS,
    ),
    M(
        "kept activations: computed in batches as large as the data set",
        KEPT_FILE,
        "every, self._buckets, self._slots, NoiseSource",
        "every, self._buckets, len(table) + 1, NoiseSource",
        "frozen_layers_run_once",
        TESTS,
    ),
    M(
        "kept activations: computed in every step",
        KEPT_FILE,
        "        self._filled = True\n",
        "",
        "frozen_layers_run_once",
        TESTS,
    ),
    M(
        "kept activations: rows lie on the disk as they are",
        KEPT_FILE,
        '        sealed = self._cipher.encrypt(number.to_bytes(12, "big"), plain, self._about)\n',
        "        sealed = plain + bytes(_TAG)\n",
        "has_no_name_and_tells_nothing",
        TESTS,
    ),
    M(
        "kept activations: every file has the same key",
        KEPT_FILE,
        "AESGCM(secrets.token_bytes(32))",
        "AESGCM(bytes(32))",
        "has_no_name_and_tells_nothing",
        TESTS,
    ),
    M(
        "kept activations: a row is not bound to its number",
        KEPT_FILE,
        "sealed = os.pread(self._file.fileno(), size, self._starts[number])\n"
        '        plain = self._cipher.decrypt(number.to_bytes(12, "big"), sealed, self._about)',
        "sealed = os.pread(self._file.fileno(), size, self._starts[number])\n"
        "        plain = sealed[:-_TAG]",
        "damaged_file_is_noticed",
        TESTS,
    ),
    M(
        "kept activations: a row that was read wrongly ends the step",
        KEPT_FILE,
        "            self.close()\n            return None\n",
        "            raise\n",
        "damaged_file_is_noticed",
        TESTS,
    ),
    M(
        "kept activations: their file has a name",
        KEPT_FILE,
        "tempfile.TemporaryFile(dir=folder, buffering=0)",
        "tempfile.NamedTemporaryFile(dir=folder, buffering=0)",
        "has_no_name_and_tells_nothing",
        TESTS,
    ),
    M(
        "kept activations: they outlive a run",
        SETTING,
        "        stack.callback(participants[client.id].close)\n",
        "",
        "nothing_is_left_of_a_run",
        TESTS,
    ),
    M(
        "kept activations: they stay after a client has left",
        PARTICIPANT,
        "            noted.record.leaving = True\n        self.close()\n",
        "            noted.record.leaving = True\n",
        "nothing_is_left_of_a_run",
        TESTS,
    ),
    M(
        "kept activations: what a killed process left stays",
        KEPT_FILE,
        "        shutil.rmtree(place / FOLDER, ignore_errors=True)\n    # Public",
        "        pass\n    # Public",
        "killed_process_left",
        TESTS,
    ),
    M(
        "kept activations: a full disk is found while a step is computed",
        KEPT_FILE,
        "            _reserve(self._file.fileno(), self._starts[-1])\n",
        "            pass\n",
        "full_disk_refuses",
        TESTS,
    ),
    M(
        "kept activations: a model that reads more than one state is cut all the same",
        LOWER,
        "    return lower if _same(lower, model, batch, whole) else None\n",
        "    return lower\n",
        "hands_more_from_layer_to_layer",
        "test_lower.py",
    ),
)
