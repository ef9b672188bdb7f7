"""Converts a trained model.

  python -m ddpm_jax.convert --pretrained ema_cifar10.ckpt --out runs/ddpm_cifar10
  python -m ddpm_jax.convert --workdir runs/cifar --out my_model --format diffusers
  python -m ddpm_jax.convert --workdir runs/cifar_edm --out mine.safetensors
  python -m ddpm_jax.convert --workdir runs/digits --out shared --format hub

The formats are `run`, a folder for --workdir of the other commands; `ddpm_jax`, a file
of tensors by our names, with the config, for --pretrained; `hub`, a folder with that
file, the card of the model and its scores, which --push sends to the Hugging Face hub;
`diffusers`, which
UNet2DModel, DDPMPipeline and DDIMPipeline of the diffusers library load; and `edm`,
`jit` and `uvit`, a file of tensors as the code of such networks names them.
"""

import argparse
import dataclasses
from pathlib import Path

import jax

from ddpm_jax.cli import arguments, command
from ddpm_jax.errors import ConfigError
from ddpm_jax.evaluation import card
from ddpm_jax.experiment import run
from ddpm_jax.interop import diffusers, edm, hub, jit, own, uvit
from ddpm_jax.places import readable, send_folder

THEIRS = {"edm": edm, "jit": jit, "uvit": uvit}
FILES = {"ddpm_jax": own, **THEIRS}  # formats of one file of tensors


def add_arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Adds the arguments of this main."""
    arguments.add_model(parser)
    path = "a new folder; of ddpm_jax, edm, jit and uvit a .safetensors file"
    parser.add_argument("--out", required=True, metavar="PATH", help=path)
    parser.add_argument(
        "--format",
        choices=["run", "hub", "diffusers", *FILES],
        help="default: run of a --pretrained model to a folder, otherwise what others "
        "have for the network",
    )
    add = parser.add_argument
    add("--push", metavar="NAME/MODEL", help="of hub: where it goes on the hub")
    add("--license", metavar="NAME", help="of hub: of the weights, as in apache-2.0")
    return parser


def main(args: argparse.Namespace) -> None:
    """Converts as the command line says."""
    if jax.process_count() > 1:
        raise ConfigError("a model is converted by one process")
    out = Path(args.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out {out}: it is there already; give a new one")
    if (args.push or args.license) and args.format != "hub":
        raise ConfigError("--push and --license belong to --format hub")
    if args.push:
        hub.check_name(args.push)
    trained = arguments.trained(args)
    model = trained.model()
    is_file = out.suffix == ".safetensors"
    of_network = (name for name in THEIRS if THEIRS[name].is_theirs(model.config))
    theirs = next(of_network, "ddpm_jax" if is_file else "diffusers")
    to_run = args.pretrained and not is_file
    kind = args.format or ("run" if to_run else theirs)
    if is_file != (kind in FILES):
        raise ConfigError(
            f"--out {out}: of format {kind}, give a new "
            + ("file whose name ends in .safetensors" if kind in FILES else "folder")
        )
    params = trained.load_params(model)
    if kind == "diffusers":
        diffusers.export(model.config, model.schedule, params, out)
    elif kind == "hub":
        model = dataclasses.replace(model, params=params)
        workdir = Path(args.workdir) if args.workdir else None
        name = args.push or out.name
        card.write_folder(out, model, workdir, args.license, name)
    elif kind in FILES:
        FILES[kind].export(model.sections, params, out)
    else:
        run.write(out, model.config, params)
    if kind in ("run", "diffusers"):
        send_folder(out)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    print(readable(f"wrote {out}, {count:,} parameters"))
    if args.push:
        print(f"pushed to {hub.push(out, args.push)}")
    if kind == "diffusers" and model.num_classes:
        note = "DDPMPipeline gives no labels: sample this one with UNet2DModel"
        if model.null is not None:
            note += f"; {model.null} is the null class of guidance"
        print(note)


if __name__ == "__main__":
    command.run(main, command.parse(add_arguments(command.parser(__doc__))))
