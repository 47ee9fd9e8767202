# shellcheck shell=bash disable=SC2154  # `options`, `switches` and `dry_run` are the launchers'
# The launchers source this file. It parses options, prints commands for --dry_run, and reports mistakes of the user.
#
# A launcher first sets `options` (names that take a value) and `switches` (names that do not), and sets a variable of
# each name to its default. Then `parse "$@"` fills these variables from --name=VALUE, --name VALUE and --switch, and
# the array `command` from the words after `--`. A mistake gives one line on stderr and exit status 2.

# shellcheck disable=SC2034  # `command` is read by the launchers
command=()

fail() {
  echo "error: $*" >&2
  exit 2
}

# Succeeds if the first argument equals one of the others.
among() {
  local _word=$1 _other
  shift
  for _other; do [ "$_word" != "$_other" ] || return 0; done
  return 1
}

# Local variables here begin with an underscore, so that they don't shadow the variables of a launcher's options.
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
      *) fail "unexpected argument '$1'; options begin with --, and the command to run comes after a separate --" ;;
    esac
    shift
  done
}

# start_with SUBCOMMANDS ARGUMENT...: checks that the first argument is one of SUBCOMMANDS, stores it in `subcommand`,
# and parses the rest. Only the subcommand `start` takes a command.
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

# need VERB NAME...: fails unless each of these options has a value; VERB names who needs it.
need() {
  local _verb=$1 _option
  shift
  for _option; do [ -n "${!_option}" ] || fail "$_verb needs --$_option"; done
}

# need_count NAME...: fails unless the value of each of these options is a whole number above 0.
need_count() {
  local _option
  for _option; do
    [[ ${!_option} =~ ^[1-9][0-9]*$ ]] || fail "--$_option must be a whole number above 0, not '${!_option}'"
  done
}

need_command() {
  [ ${#command[@]} -gt 0 ] || fail "$1 needs a command after --, e.g. -- python -m launch.train --config=... --workdir=..."
}

# Prints the arguments as one line, quoted so that a shell reads the same arguments.
quoted() {
  local _words
  printf -v _words '%q ' "$@"
  printf '%s\n' "${_words% }"
}

# Runs a command; with --dry_run prints it instead.
run() {
  if [ "$dry_run" = yes ]; then quoted "$@"; else "$@"; fi
}
