"""The guards of a client against its server, crashes and restored files; see `mutants.py`."""

from mutant import Mutant

M = Mutant
PARTICIPANT, PARTY, STORE = "client/participant.py", "client/party.py", "client/store.py"
ROUND, CHECKS, TREE, RECEIVED = (
    "client/round_requests.py",
    "client/round_checks.py",
    "client/tree_requests.py",
    "client/received.py",
)
DATA_SETS, TRAINING, PACING = "client/data_sets.py", "client/training.py", "client/pacing.py"
REQUESTS, ROUNDS = "test_hostile_requests.py", "test_hostile_rounds.py"
TREES, STORES, OF_STORE = "test_hostile_trees.py", "test_hostile_stores.py", "test_store.py"
INTERRUPTIONS, OF_PACING = "test_interruptions.py", "test_pacing.py"

ORDER = (
    M(
        "unsigned requests: a repeated counter",
        PARTICIPANT,
        "if not last < request.counter <= last + COUNTER_WINDOW:",
        "if not request.counter <= last + COUNTER_WINDOW:",
        "hostile_unsigned_requests_and_repeated",
        REQUESTS,
    ),
    M(
        "unsigned requests: an absurd counter",
        PARTICIPANT,
        "if not last < request.counter <= last + COUNTER_WINDOW:",
        "if not last < request.counter:",
        "hostile_unsigned_requests_and_repeated",
        REQUESTS,
    ),
    M(
        "unsigned requests: the counter is not noted",
        PARTICIPANT,
        "            noted.record.counter = counter\n",
        "",
        "hostile_unsigned_requests_and_repeated",
        REQUESTS,
    ),
    M(
        "restored store: more was answered than it knows",
        PARTICIPANT,
        "        if request.answered > last:\n",
        "        if False:\n",
        "hostile_restored_store_with_its_head",
        STORES,
    ),
    M(
        "guards as oracle: charged after computing",
        PARTICIPANT,
        "                seed = noted.charge("
        "charge.purpose, charge.event, repeatable=charge.repeatable)\n"
        "                step.write(noted.record)\n"
        "                if step.takes is not None:\n"
        "                    step.takes()\n"
        "                    noted.keep(store.state)\n"
        "        if charge is not None:\n"
        "            self._session, reply = step.answer(seed)\n"
        "            with store.writing() as noted:\n",
        "                step.write(noted.record)\n"
        "                if step.takes is not None:\n"
        "                    step.takes()\n"
        "        if charge is not None:\n"
        "            self._session, reply = step.answer(bytes(32))\n"
        "            with store.writing() as noted:\n"
        "                noted.charge("
        "charge.purpose, charge.event, repeatable=charge.repeatable)\n",
        "hostile_guards_as_oracle_charges_are_on_the_disk",
        ROUNDS,
    ),
    M(
        "guards as oracle: burnt after computing",
        PARTICIPANT,
        "repeatable=charge.repeatable)\n"
        "                step.write(noted.record)\n"
        "                if step.takes is not None:\n"
        "                    step.takes()\n"
        "                    noted.keep(store.state)\n"
        "        if charge is not None:\n"
        "            self._session, reply = step.answer(seed)\n"
        "            with store.writing() as noted:\n",
        "repeatable=charge.repeatable)\n"
        "                if step.takes is not None:\n"
        "                    step.takes()\n"
        "        if charge is not None:\n"
        "            self._session, reply = step.answer(seed)\n"
        "            with store.writing() as noted:\n"
        "                step.write(noted.record)\n",
        "hostile_guards_as_oracle_charges_are_on_the_disk",
        ROUNDS,
    ),
    M(
        "second budget: a stage that is finished is not noted",
        PARTICIPANT,
        "                    noted.finish(charge.purpose)\n",
        "                    pass\n",
        "hostile_second_budget_of_a_head",
        REQUESTS,
    ),
    M(
        "telling time: replies leave at once",
        PARTICIPANT,
        "if self._pace and step.paced:",
        "if False:",
        "hostile_telling_time",
        OF_PACING,
    ),
    M(
        "telling time: an upload is not paced",
        ROUND,
        "        takes=due.take,\n        keeps=True,\n        paced=True,\n",
        "        takes=due.take,\n        keeps=True,\n",
        "hostile_telling_time",
        OF_PACING,
    ),
    M(
        "telling time: a late reply leaves when it is ready",
        PACING,
        "        if due > taken:\n",
        "        if due > taken and not beyond:\n",
        "next_multiple",
        OF_PACING,
    ),
)

KEPT = (
    M(
        "second budget: a charge is not written",
        STORE,
        "        self._transaction.charge(event, job=self._store.run, purpose=purpose)\n",
        "",
        "hostile_second_budget_a_repeatable or hostile_restored_store_an_upload",
        OF_STORE,
    ),
    M(
        "second budget: the seed of a repeatable charge is drawn anew",
        STORE,
        "            return self._store.secrets.open(bytes.fromhex(sealed))\n",
        "            return secrets.token_bytes(32)\n",
        "hostile_second_budget_a_repeatable",
        OF_STORE,
    ),
    M(
        "second budget: a repeatable charge keeps no seed",
        STORE,
        "            self.record.seeds[purpose] = self._store.secrets.seal(seed).hex()\n",
        "            pass\n",
        "hostile_second_budget_a_repeatable",
        OF_STORE,
    ),
    M(
        "second budget: a stage that is kept is charged again",
        STORE,
        "        if repeatable and purpose in self.record.finished:\n",
        "        if False:\n",
        "a_kept_result_needs_no_seed",
        OF_STORE,
    ),
    M(
        "a seed stays when its result is kept",
        STORE,
        "        self.record.seeds.pop(stage, None)\n",
        "",
        "a_kept_result_needs_no_seed",
        OF_STORE,
    ),
    M(
        "restored store: every charge is repeatable",
        STORE,
        "if repeatable and (sealed := self.record.seeds.get(purpose)):",
        "if sealed := self.record.seeds.setdefault(purpose, '50' + 32 * '00'):",
        "hostile_restored_store_an_upload",
        OF_STORE,
    ),
    M(
        "restored store: an upload is repeatable",
        ROUND,
        "        Charge(purpose_of(mine.number), party.round_event(), repeatable=False),\n",
        "        Charge(purpose_of(mine.number), party.round_event(), repeatable=True),\n",
        "update_that_may_have_been_uploaded",
        INTERRUPTIONS,
    ),
    M(
        "restored store: a store that failed goes on",
        STORE,
        "        if self._broken:\n",
        "        if False:\n",
        "store_that_failed_to_write",
        OF_STORE,
    ),
    M(
        "restored store: a failure is not remembered",
        STORE,
        "            self._broken = True\n            raise\n",
        "            raise\n",
        "store_that_failed_to_write",
        OF_STORE,
    ),
    M(
        "restored store: a refused write stays in memory",
        STORE,
        "        draft = msgspec.json.decode(msgspec.json.encode(self.record), type=Record)\n",
        "        draft = self.record\n",
        "refused_write_leaves_no_trace",
        OF_STORE,
    ),
    M(
        "values are readable at rest",
        STORE,
        "sealed = self._store.secrets.seal(state.to_bytes())",
        'sealed = b"P" + state.to_bytes()',
        "encrypted_at_rest",
        OF_STORE,
    ),
    M(
        "seeds are readable at rest",
        STORE,
        "self._store.secrets.seal(seed).hex()",
        '(b"P" + seed).hex()',
        "encrypted_at_rest",
        OF_STORE,
    ),
    M(
        "a record of another version is read",
        STORE,
        "    if found.format != _FORMAT:\n",
        "    if False:\n",
        "record_of_another_version",
        OF_STORE,
    ),
    M(
        "second budget: rows under another name",
        DATA_SETS,
        "if name != dataset and _shared(own, known) >= SAME:",
        "if False:",
        "hostile_second_budget_for",
        STORES,
    ),
    M(
        "second budget: most of the rows under another name",
        DATA_SETS,
        "_shared(own, known) >= SAME:",
        "_shared(own, known) >= 2.0:",
        "hostile_second_budget_for_most",
        STORES,
    ),
    M(
        "second budget: rows are not noted",
        DATA_SETS,
        "            self._note_rows(dataset, texts)\n",
        "",
        "hostile_second_budget_for_most",
        STORES,
    ),
    M(
        "second budget: an earlier version's ledger is forgotten",
        DATA_SETS,
        "        if old.exists() and not stores.store_of(name).exists():\n",
        "        if False:\n",
        "hostile_second_budget_beside",
        STORES,
    ),
    M(
        "the sketch of rows has no key",
        DATA_SETS,
        "encode(), key=key, digest_size=8",
        "encode(), digest_size=8",
        "tells_nothing_without_the_key",
        STORES,
    ),
    M(
        "restored store: it has no head",
        DATA_SETS,
        "create=create, head=head, exclusive=True",
        "create=create, exclusive=True",
        "hostile_restored_store_of_either_half",
        STORES,
    ),
    M(
        "restored store: two processes hold it",
        DATA_SETS,
        "head=head, exclusive=True",
        "head=head",
        "hostile_restored_store_two_processes",
        STORES,
    ),
    M(
        "names and files: heads are readable by others",
        DATA_SETS,
        "        private_folder(head.parent)\n",
        "        head.parent.mkdir(parents=True, exist_ok=True)\n",
        "private_is_its_owners",
        STORES,
    ),
)

ROUNDS_CHECKED = (
    M(
        "unsigned requests: a round beyond the job",
        CHECKS,
        " or message.round > party.job.rounds:",
        ":",
        "hostile_unsigned_requests_rounds_and_attempts",
        REQUESTS,
    ),
    M(
        "unsigned requests: an attempt beyond all",
        CHECKS,
        "if not 0 < message.attempt <= MOST_ATTEMPTS or",
        "if",
        "hostile_unsigned_requests_rounds_and_attempts",
        REQUESTS,
    ),
    M(
        "unsigned requests: a merge is a round, and a round a merge",
        CHECKS,
        "    if message.merge != (message.round == MERGE) or (message.merge and not merges):\n",
        "    if False:\n",
        "hostile_unsigned_requests_rounds_and_attempts",
        REQUESTS,
    ),
    M(
        "unsigned requests: a merge in a job without one",
        CHECKS,
        " or (message.merge and not merges):",
        ":",
        "hostile_unsigned_requests_rounds_and_attempts",
        REQUESTS,
    ),
    M(
        "unsigned requests: the clip is not checked",
        CHECKS,
        "    if not usable or (fixed is not None and message.clip != fixed):\n",
        "    if False:\n",
        "hostile_unsigned_requests_a_bad_clip",
        REQUESTS,
    ),
    M(
        "unsigned requests: the clip may move",
        CHECKS,
        "    if not usable or (fixed is not None and message.clip != fixed):\n",
        "    if not usable:\n",
        "hostile_unsigned_requests_a_bad_clip_leaves",
        REQUESTS,
    ),
    M(
        "unsigned requests: a round begins without its budget",
        ROUND,
        "    if not charged and not party.store.affords(party.round_event()):\n",
        "    if False:\n",
        "hostile_unsigned_requests_no_round_begins",
        REQUESTS,
    ),
    M(
        "unsigned requests: the inbox is opened after the charge",
        ROUND,
        "    opened = masking.receive(mine.state, message.inbox, late=given.late)\n"
        "    due = _Upload(party, mine.number, opened, given, ahead)\n",
        "    held, read = mine.state, masking.receive\n"
        "    due = _Upload(party, mine.number, held, given, ahead)\n"
        "    def late(seed):\n"
        "        opened = read(held, message.inbox, late=given.late)\n"
        "        return replace(due, opened=opened).trained(seed)\n"
        "    object.__setattr__(due, 'trained', late)\n",
        "hostile_unsigned_requests_a_bad_inbox",
        REQUESTS,
    ),
    M(
        "unsigned requests: a member trains at home as well",
        ROUND,
        "    if party.nodes() or not MERGE",
        "    if not MERGE",
        "hostile_unsigned_requests_out_of_order",
        REQUESTS,
    ),
    M(
        "unsigned requests: a round at home again",
        ROUND,
        "if message.round <= record.round:",
        "if False:",
        "hostile_unsigned_requests_a_round_at_home",
        REQUESTS,
    ),
    M(
        "unsigned requests: a round at home beyond the job",
        ROUND,
        "not MERGE < message.round <= party.job.rounds:",
        "not MERGE < message.round:",
        "hostile_unsigned_requests_a_round_at_home",
        REQUESTS,
    ),
    M(
        "guards as oracle: weights are not rehearsed before the charge",
        RECEIVED,
        "        party.rehearse(rehearsed)\n",
        "        pass\n",
        "hostile_guards_as_oracle_weights_are_rehearsed",
        ROUNDS,
    ),
    M(
        "guards as oracle: a rehearsal writes into the client's values",
        RECEIVED,
        "rehearsed = ClientState.from_bytes(party.store.state.to_bytes())",
        "rehearsed = party.store.state",
        "hostile_guards_as_oracle_weights_are_rehearsed",
        ROUNDS,
    ),
    M(
        "guards as oracle: values that are no numbers are masked",
        ROUND,
        "np.nan_to_num(change.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)",
        "change.astype(np.float64)",
        "hostile_guards_as_oracle_values_that_are_no_numbers",
        ROUNDS,
    ),
    M(
        "guards as oracle: a round that breaks down raises",
        PARTY,
        "            return without_rows()\n",
        "            raise\n",
        "hostile_guards_as_oracle_what_broke_down",
        ROUNDS,
    ),
    M(
        "other experts: the last ones are kept without the members' word",
        ROUND,
        "    if len(votes) != len(message.votes) or not enough:\n",
        "    if False:\n",
        "hostile_other_experts_a_consistent_lie_at_the_end",
        "test_hostile_variants.py",
    ),
    M(
        "other experts: rounds follow the last experts",
        CHECKS,
        "    if LAST in party.store.record.finished:\n",
        "    if False:\n",
        "hostile_unsigned_requests_no_round_follows",
        REQUESTS,
    ),
    M(
        "invented distances: of absurd size",
        "agreed/round_plan.py",
        "    if max(squared.max(initial=0.0), noise.max(initial=0.0)) > FARTHEST:\n",
        "    if False:\n",
        "hostile_invented_distances_of_absurd_size",
        "test_hostile_variants.py",
    ),
    M(
        "second budget: a part of the rows",
        DATA_SETS,
        "    return common / min(first.rows, second.rows)\n",
        "    return common / max(first.rows, second.rows)\n",
        "hostile_second_budget_for_a_part",
        "test_hostile_variants.py",
    ),
    M(
        "second budget: the key of the rows is plain",
        DATA_SETS,
        "            sealed = box.seal(secrets.token_bytes(32))\n",
        "            sealed = secrets.token_bytes(32)\n",
        "hostile_stolen_disk_without",
        "test_hostile_variants.py",
    ),
    M(
        "long record: the longest row decides the width of all",
        TRAINING,
        "        lengths = [len(row) for row in data.train.tokens]\n",
        "        lengths = [max(map(len, data.train.tokens))] * len(data.train)\n",
        "hostile_long_record",
        ROUNDS,
    ),
)

EXPERTS = (
    M(
        "guards as oracle: external experts out of reach",
        RECEIVED,
        "    if not within_reach(external, initial, bound):\n",
        "    if False:\n",
        "hostile_guards_as_oracle_values_out_of_reach",
        ROUNDS,
    ),
    M(
        "other experts: own experts out of reach",
        RECEIVED,
        "        if not within_reach(values, start(node, initial).values, allowed)",
        "        if False",
        "hostile_other_experts_an_invented_sum",
        "test_hostile_reach.py",
    ),
    M(
        "other experts: digests are not compared",
        RECEIVED,
        "        if told.get(node.name) != node_digest(node, moved[node.name], external):\n",
        "        if False:\n",
        "hostile_other_experts_for_one_member",
        ROUNDS,
    ),
    M(
        "other experts: digests of other nodes, or of none",
        RECEIVED,
        "    if party.has_tree and tuple(",
        "    if False and tuple(",
        "hostile_other_experts_for_one_member",
        ROUNDS,
    ),
    M(
        "other experts: a refused sum has moved the client's own values",
        RECEIVED,
        "copy.deepcopy(state.nodes.get(node.name))",
        "state.nodes.get(node.name)",
        "hostile_other_experts_for_one_member",
        ROUNDS,
    ),
    M(
        "other experts: a sum under another clip",
        RECEIVED,
        "    if not usable or (fixed is not None and entry.clip != fixed):\n",
        "    if False:\n",
        "hostile_other_experts_for_one_member",
        ROUNDS,
    ),
    M(
        "other experts: sums of nodes of others",
        RECEIVED,
        " or any((e.era, e.node) not in lines for e in opened):",
        ":",
        "hostile_other_experts_opened_sums",
        ROUNDS,
    ),
    M(
        "other experts: a sum twice",
        RECEIVED,
        "if order != sorted(set(order)) or any(",
        "if any(",
        "hostile_other_experts_opened_sums",
        ROUNDS,
    ),
    M(
        "other experts: a sum of a round that is not over",
        RECEIVED,
        "    if any(entry.round >= before for entry in opened):\n",
        "    if False:\n",
        "hostile_other_experts_opened_sums",
        ROUNDS,
    ),
    M(
        "other experts: a sum of a merge where there is none",
        RECEIVED,
        "    if merge and not party.terms.merges:\n",
        "    if False:\n",
        "hostile_other_experts_no_sum_of_a_merge",
        ROUNDS,
    ),
    M(
        "other experts: the last ones are taken as sent",
        ROUND,
        "    received = receive(party, message.experts, party.job.rounds + 1)\n",
        "    sent = np.frombuffer(message.experts.external, dtype='<f4').copy()\n"
        "    nodes, known = party.store.state.nodes, party.job.rounds\n"
        "    received = Received(nodes, sent, known, message.experts.digests)\n",
        "hostile_other_experts_a_back_door",
        ROUNDS,
    ),
)

TREES_CHECKED = (
    M(
        "other model: another roster or job joins",
        TREE,
        "    if message.terms != party.terms.digest or message",
        "    if message",
        "hostile_unsigned_requests_another_roster",
        REQUESTS,
    ),
    M(
        "other model: another model joins",
        TREE,
        " or message.model != party.facts.digest:",
        ":",
        "hostile_unsigned_requests_another_roster",
        REQUESTS,
    ),
    M(
        "invented distances: a sketch where a tree needs none",
        TREE,
        "    if fixed_tree(party.terms, party.facts) is not None or settled:\n",
        "    if settled:\n",
        "hostile_invented_distances_where_the_job_needs_none",
        TREES,
    ),
    M(
        "invented distances: a sketch after the vote",
        TREE,
        " is not None or settled:",
        " is not None:",
        "signed_a_tree_makes_no_more_sketches",
        TREES,
    ),
    M(
        "invented distances: any number of sketches",
        TREE,
        "    if record.sketches >= MOST_SKETCHES:\n",
        "    if False:\n",
        "bounded_number_of_sketches",
        INTERRUPTIONS,
    ),
    M(
        "invented distances: sketches are not counted",
        TREE,
        "        noted.sketches += 1\n",
        "",
        "bounded_number_of_sketches",
        INTERRUPTIONS,
    ),
    M(
        "invented distances: a sketch of a group without this client",
        TREE,
        "    if party.id not in message.members:\n",
        "    if False:\n",
        "hostile_invented_distances_a_group_without",
        TREES,
    ),
    M(
        "invented distances: an attempt of a sketch beyond all",
        TREE,
        "if not record.sketch_attempt < message.attempt <= MOST_ATTEMPTS:",
        "if not record.sketch_attempt < message.attempt:",
        "hostile_invented_distances_a_victim_with_two_accomplices_is_no_sketch",
        TREES,
    ),
    M(
        "invented distances: an attempt of a sketch again",
        TREE,
        "if not record.sketch_attempt < message.attempt <= MOST_ATTEMPTS:",
        "if not message.attempt <= MOST_ATTEMPTS:",
        "hostile_invented_distances_a_victim_with_two_accomplices_is_no_sketch",
        TREES,
    ),
    M(
        "invented distances: a broadcast below the quorum",
        TREE,
        "    if len(state.group.names) < party.terms.quorum:\n",
        "    if False:\n",
        "hostile_invented_distances_a_victim_with_two_accomplices_is_no_broadcast",
        TREES,
    ),
    M(
        "invented distances: a sketch is not charged",
        TREE,
        "return Step(answer, write, Charge(purpose, event, repeatable=True), ",
        "return Step(lambda _: answer(bytes(32)), write, ",
        "bounded_number_of_sketches",
        INTERRUPTIONS,
    ),
    M(
        "invented distances: of a sketch that was never made",
        TREE,
        "    if message.attempt != record.sketched_attempt or party.id",
        "    if party.id",
        "hostile_invented_distances_without_a_sketch",
        TREES,
    ),
    M(
        "invented distances: of all others",
        TREE,
        " or party.id not in message.members:",
        ":",
        "hostile_invented_distances_after_a_sketch",
        TREES,
    ),
    M(
        "invented distances: of fewer than a quorum after a sketch",
        TREE,
        "    check_members(message.members, party.terms)\n    proposed = digest(message)\n",
        "    proposed = digest(message)\n",
        "hostile_invented_distances_after_a_sketch",
        TREES,
    ),
    M(
        "invented distances: a client signs two trees",
        TREE,
        '    if record.voted not in ("", proposed):\n',
        "    if False:\n",
        "hostile_invented_distances_two_trees",
        TREES,
    ),
    M(
        "invented distances: a vote is not noted",
        TREE,
        "        noted.voted = proposed\n",
        "        pass\n",
        "hostile_invented_distances_two_trees",
        TREES,
    ),
    M(
        "invented distances: labels are not computed again",
        TREE,
        "    if tree.labels != message.labels:\n",
        "    if False:\n",
        "hostile_invented_distances_labels",
        TREES,
    ),
    M(
        "invented distances: fewer votes than a quorum",
        TREE,
        " or len(names) < party.terms.quorum:",
        ":",
        "adopting_needs_the_signatures",
        TREES,
    ),
    M(
        "invented distances: one vote counts often",
        TREE,
        "    if len(set(names)) != len(names) or len",
        "    if len",
        "hostile_invented_distances_two_trees or adopting_needs_the_signatures",
        TREES,
    ),
    M(
        "invented distances: votes are not verified",
        TREE,
        "    if not all(party.terms.roster.verifies("
        "name, sign, signed) for name, sign in votes):\n",
        "    if False:\n",
        "adopting_needs_the_signatures",
        TREES,
    ),
)

CLIENT = (*ORDER, *KEPT, *ROUNDS_CHECKED, *EXPERTS, *TREES_CHECKED)
