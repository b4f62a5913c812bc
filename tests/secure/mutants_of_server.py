"""The guards of the server against clients that lie or break; see `mutants.py`."""

from mutant import Mutant

M = Mutant
CHANNEL, COORDINATOR = "server/channel.py", "server/coordinator.py"
HOSTILE, RUN, TREES = "test_hostile_clients.py", "test_run.py", "test_hostile_trees.py"
STORES, INTERRUPTIONS = "test_hostile_stores.py", "test_interruptions.py"

SERVER = (
    M(
        "crashing client: what does not decode stops the server",
        CHANNEL,
        'no valid reply at stage %s: %s", client, name, error)\n            return None\n',
        'no valid reply at stage %s: %s", client, name, error)\n            raise\n',
        "hostile_crashing_client_is_named",
        HOSTILE,
    ),
    M(
        "crashing client: replies of strangers are read",
        CHANNEL,
        "if client not in self._terms.roster:",
        "if False:",
        "replies_of_strangers",
        HOSTILE,
    ),
    M(
        "crashing client: one client's bound is everybody's clip",
        "server/admission.py",
        "self._with_known_heads(self._without_outliers(self._asked(exchange, needed=True)))",
        "self._with_known_heads(self._asked(exchange, needed=True))",
        "hostile_crashing_client_cannot_widen",
        HOSTILE,
    ),
    M(
        "crashing client: votes are passed on unverified",
        COORDINATOR,
        "            and self.terms.roster.verifies(name, reply.signature, message)\n",
        "",
        "hostile_crashing_client_with_a_false_vote",
        HOSTILE,
    ),
    M(
        "crashing client: a refused message ends the round",
        "server/protocol.py",
        "            if refused not in incoming:\n",
        "            if refused in incoming:\n",
        "changed_message_is_dropped",
        RUN,
    ),
    M(
        "crashing client: a round that opens nothing ends the job",
        COORDINATOR,
        "            except SecAggError as error:  # nothing was opened",
        "            except ZeroDivisionError as error:  # nothing was opened",
        "too_few_survivors",
        RUN,
    ),
    M(
        "crashing client: one refusal ends the agreement on a tree",
        COORDINATOR,
        "        if len(votes) < self.terms.quorum:\n",
        "        if len(votes) < len(asked):\n",
        "one_client_that_refuses_the_tree",
        TREES,
    ),
    M(
        "too few votes are announced as a tree",
        COORDINATOR,
        "        if len(votes) < self.terms.quorum:\n",
        "        if False:\n",
        "too_few_sign_stops_the_run",
        TREES,
    ),
    M(
        "too few sketches make a tree",
        COORDINATOR,
        "        if len(found) < least:\n",
        "        if False:\n",
        "too_few_sketches",
        RUN,
    ),
    M(
        "too few clients that joined go on",
        COORDINATOR,
        "if len(self.joined) < self.job.masking.min_group:",
        "if False:",
        "hostile_restored_store_with_its_head",
        STORES,
    ),
    M(
        "a proposal is not kept before it is sent",
        COORDINATOR,
        "            self.state.proposal = msgspec.structs.replace(draft, labels=labels)\n"
        "            self._folder.save(self.state)\n",
        "            self.state.proposal = msgspec.structs.replace(draft, labels=labels)\n",
        "tree_that_some_have_accepted",
        INTERRUPTIONS,
    ),
    M(
        "unsigned requests: a server of another key begins",
        CHANNEL,
        "if key.public_bytes != terms.server_key:",
        "if False:",
        "server_with_another_key",
        HOSTILE,
    ),
    M(
        "unsigned requests: a second start counts from the beginning",
        CHANNEL,
        "start * REQUESTS_OF_A_START",
        "REQUESTS_OF_A_START",
        "counters_grow",
        HOSTILE,
    ),
    M(
        "restored store: what was answered is not remembered",
        CHANNEL,
        "self.answered[client] = self._counter",
        "pass",
        "hostile_restored_store_with_its_head",
        STORES,
    ),
    M(
        "restored store: what was answered is not kept",
        COORDINATOR,
        "        self.state.answered = self._channel.answered\n",
        "",
        "hostile_restored_store_with_its_head",
        STORES,
    ),
    M(
        "restored store: a refusal counts as an answer",
        CHANNEL,
        "        else:\n            self.answered[client] = self._counter\n",
        "        self.answered[client] = self._counter\n",
        "refusal_is_no_answer",
        HOSTILE,
    ),
)
