"""The program, its networks sharded by FSDP2 down to layers as small as those of the tests."""

from demo_t2v.cli import main
from demo_t2v.training.distributed import base as engine

engine.SHARD_FROM = 100

if __name__ == "__main__":
    main()
