# shellcheck shell=bash disable=SC2154  # `options`, `switches` and `dry_run` are the launchers'
# Sourced by the launchers: their options, what they print with --dry_run, how they end on a mistake of the user.
#
# A launcher first sets `options` (names that take a value) and `switches` (names that do not), and a variable of each
# name to its default; `parse "$@"` then fills these variables from --name=VALUE, --name VALUE and --switch, and the
# array `command` from what follows `--`. Any mistake is one line on stderr and exit status 2.

# shellcheck disable=SC2034  # `command` is read by the launchers
command=()

fail() {
  echo "error: $*" >&2
  exit 2
}

# Whether the first argument is one of the others.
among() {
  local _word=$1 _other
  shift
  for _other; do [ "$_word" != "$_other" ] || return 0; done
  return 1
}

# Variables of functions here begin with an underscore, so that they hide none of a launcher's options.
parse() {
  local _option
  while [ $# -gt 0 ]; do
    _option=${1#--}
    _option=${_option%%=*}
    case $1 in
      --)
        shift
        command=("$@")
        return
        ;;
      --*=*)
        among "$_option" "${options[@]}" || fail "unknown option '--$_option'; --help lists them"
        printf -v "$_option" %s "${1#*=}"
        ;;
      --*)
        if among "$_option" "${switches[@]}"; then
          printf -v "$_option" yes
        else
          among "$_option" "${options[@]}" || fail "unknown option '$1'; --help lists them"
          [ $# -gt 1 ] || fail "$1 needs a value"
          printf -v "$_option" %s "$2"
          shift
        fi
        ;;
      *) fail "unexpected argument '$1'; options begin with --, and the command to run stands after --" ;;
    esac
    shift
  done
}

# start_with SUBCOMMANDS ARGUMENT...: the first argument is one of these words, and becomes `subcommand`; the rest is parsed.
# Only `start` takes a command.
start_with() {
  local _subcommands
  read -ra _subcommands <<<"$1"
  subcommand=${2:-}
  case $subcommand in
    --help | help)
      usage
      exit
      ;;
    '')
      usage >&2
      exit 2
      ;;
  esac
  among "$subcommand" "${_subcommands[@]}" || fail "unknown subcommand '$subcommand'; --help lists them"
  parse "${@:3}"
  [ "$subcommand" = start ] || [ ${#command[@]} -eq 0 ] || fail "$subcommand takes no command after --"
}

# need VERB NAME...: these options must have a value.
need() {
  local _verb=$1 _option
  shift
  for _option; do [ -n "${!_option}" ] || fail "$_verb needs --$_option"; done
}

# need_count NAME...: these must be whole numbers above 0.
need_count() {
  local _option
  for _option; do
    [[ ${!_option} =~ ^[1-9][0-9]*$ ]] || fail "--$_option must be a whole number above 0, not '${!_option}'"
  done
}

need_command() {
  [ ${#command[@]} -gt 0 ] || fail "$1 needs a command after --, e.g. -- python -m launch.train --config=... --workdir=..."
}

# The arguments as one line that a shell reads as the same arguments.
quoted() {
  local _words
  printf -v _words '%q ' "$@"
  printf '%s\n' "${_words% }"
}

# Run a command, or print it with --dry_run.
run() {
  if [ "$dry_run" = yes ]; then quoted "$@"; else "$@"; fi
}
