"""`csr-ray push`: a run's model, adapter or pairs to the Hugging Face hub."""

from __future__ import annotations

import argparse
import sys

from csr_ray.cli.arguments import Commands, at_least_one
from csr_ray.errors import EXIT_DONE

_DESCRIPTION = """\
Put what a run has made into a repository of the Hugging Face hub, together with its card. The repository is made if
it is not there. What has arrived is not sent again, so a push that was cut off is just repeated.

  model     model/, the last policy merged into the base model's own format (default)
  adapter   one LoRA on the base model: all rounds up to --round added up, as PEFT and vLLM load it
  pairs     the preference pairs as a data set (csr-ray pairs)

The token is taken from HF_TOKEN, or from `hf auth login`; it needs write access. HF_ENDPOINT, or --endpoint, names
another hub than the public one; HF_HUB_DISABLE_XET=1 sends by plain HTTP, for one that has no Xet storage.
"""
_EXAMPLES = """examples:
  csr-ray push runs/mine me/my-model --dry-run                    which files, how large; nothing is sent
  csr-ray push runs/mine me/my-model --private --license apache-2.0
  csr-ray push runs/mine me/my-lora --what adapter --round 2      rounds 1 and 2 as one LoRA
  csr-ray push runs/mine me/my-pairs --what pairs --embed-images  with the pictures in it
"""


def add_parser(commands: Commands) -> None:
    """Add the command to the parser."""
    push = commands.add_parser(
        "push",
        help="put the model, an adapter or the pairs of RUN_DIR on the Hugging Face hub",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    push.add_argument("run_dir", metavar="RUN_DIR", help="folder or URL of a run")
    push.add_argument("repo_id", metavar="REPO_ID", help="owner/name; a name alone is the token's owner's")
    push.add_argument("--what", choices=("model", "adapter", "pairs"), default="model", help="default model")
    push.add_argument(
        "--round",
        type=at_least_one,
        default=None,
        metavar="N",
        help="of an adapter: up to which round, default the last; of pairs: of which, default all; 1 is the first",
    )
    push.add_argument("--private", action="store_true", help="a repository that nobody else sees")
    push.add_argument(
        "--license", default="", metavar="ID", help="for the card: an identifier of the hub's, such as apache-2.0"
    )
    push.add_argument(
        "--embed-images", action="store_true", help="of pairs: put the pictures into the data set; see that you may"
    )
    push.add_argument(
        "--endpoint", default=None, metavar="URL", help="the hub; default HF_ENDPOINT or the public one"
    )
    push.add_argument("--dry-run", action="store_true", help="list the files and their sizes, and send nothing")
    push.set_defaults(run=_push)


def _push(arguments: argparse.Namespace) -> int:
    from csr_ray.app.console import UnattendedConsole
    from csr_ray.app.push import Push, push

    asked = Push(
        repo_id=arguments.repo_id,
        what=arguments.what,
        round_number=arguments.round,
        is_private=arguments.private,
        endpoint=arguments.endpoint,
        license=arguments.license,
        embeds=arguments.embed_images,
    )
    console = UnattendedConsole(highlight=False, width=None if sys.stdout.isatty() else 140)
    push(arguments.run_dir, asked=asked, is_dry_run=arguments.dry_run, console=console)
    return EXIT_DONE
