"""The program with FSDP2 sharding of small layers, too."""

from demo_t2v.cli import main
from demo_t2v.training.distributed import base

base.SHARD_FROM = 100

if __name__ == "__main__":
    main()
