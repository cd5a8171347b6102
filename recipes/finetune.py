"""Fine-tune weights of the zoo or the Hub: ``accelerate launch recipes/finetune.py [flags]``."""

import sys

from man_zoo.commands.finetune import main

if __name__ == "__main__":
    sys.exit(main(program="finetune.py"))
