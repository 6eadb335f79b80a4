#!/usr/bin/env bash
# Switch the configured table to BGE-small: check, backup reminder, three Alembic phases, report. Thin over the commands.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: scripts/02_switch_to_bge_small.sh [--yes] [--skip-benchmark] [--help]

Moves the table that the settings name (environment or .env, see .env.example) to the configured model, BGE-small by
default. Asks before each phase. Run it again after an interruption: what is done stays done.

  --yes             do not ask; needed where there is no terminal
  --skip-benchmark  do not write the benchmark report at the end

Exit codes: 0 done, 1 a phase failed, 2 wrong usage or configuration, 3 refused because a check did not hold,
4 database or model unavailable, 5 table locked, 10 you answered no.
TEXT
}

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
[ -d "$root/.venv/bin" ] && PATH="$root/.venv/bin:$PATH"
yes=false
benchmark=true

for argument in "$@"; do
  case "$argument" in
    --yes | -y) yes=true ;;
    --skip-benchmark) benchmark=false ;;
    --help | -h) usage && exit 0 ;;
    *) usage >&2 && exit 2 ;;
  esac
done

say() { printf '\n== %s\n' "$1"; }

confirm() {
  "$yes" && return 0
  local answer
  read -r -p "$1 [y/N] " answer
  case "$answer" in
    y | Y | yes) ;;
    *) echo "Stopped; nothing after this point was done. Run the script again to go on." && exit 10 ;;
  esac
}

fact() { python -c 'import json, sys; print(json.load(sys.stdin)[sys.argv[1]])' "$1"; }

phase() {
  say "$1"
  confirm "$2"
  alembic -c "$root/alembic.ini" upgrade "$3" || {
    echo "The phase did not finish; every committed batch is kept. Mend what the message names and run the script again." >&2
    exit 1
  }
}

if ! "$yes" && [ ! -t 0 ]; then
  echo "There is no terminal to ask on: add --yes to confirm every step." >&2
  exit 2
fi
for command in python bge-pipeline alembic; do
  command -v "$command" >/dev/null || { echo "$command is not installed: run \`make install\` first." >&2 && exit 2; }
done

say "Configuration and connection"
backup="$(python "$root/scripts/pg_dump_line.py")" # exits with 2 where no database is named
facts="$(bge-pipeline --quiet status --json)"
now="$(fact phase <<<"$facts")"
echo "The table is reached; its phase is $now."
if [ "$now" = swapped ] || [ "$now" = retired ]; then
  python "$root/scripts/require_same_model.py" # exits with 3 where the settings name another model
  echo "Nothing to do: search reads the new vectors already."
  exit 0
fi
rolled_back="$(fact rolled_back <<<"$facts")"
if [ "$rolled_back" != None ]; then
  echo "Search was rolled back to the old vectors at $rolled_back."
  confirm "Go forward again?"
  export FORWARD_AFTER_ROLLBACK="$rolled_back" # the phases refuse without it
fi

say "Plan"
bge-pipeline plan # exits with 3 where it finds an obstacle

say "Backup"
echo "$backup"
confirm "Do you have a backup that is recent enough?"

# Alembic's records are ahead of the table after `bge-pipeline rollback`; each phase sees for itself what is left to do.
alembic -c "$root/alembic.ini" stamp 004
phase "Phase 1 of 3: expand" "Add the new column?" 005
phase "Phase 2 of 3: backfill" "Embed every row? It may be interrupted at any time." 006
phase "Phase 3 of 3: swap" "Build the index and exchange the columns?" 007

say "Report"
bge-pipeline status
if "$benchmark"; then
  bge-pipeline benchmark
fi

say "Next steps"
cat <<'TEXT'
bge-pipeline search "..."   try it
bge-pipeline rollback       search reads the old vectors again
bge-pipeline retire         drop the old vectors, when you trust the new ones; there is no way back after it
TEXT
