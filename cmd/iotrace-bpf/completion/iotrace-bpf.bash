# Completion of iotrace-bpf for bash. The program itself knows what can follow.
_iotrace_bpf() {
	local line=${COMP_LINE:0:COMP_POINT} words=() value rest
	read -ra words <<<"$line"
	[[ $line == *[[:space:]] ]] && words+=("")
	# bash replaces only what follows the last = or : of the word.
	local word=${words[-1]} breaks= kept=
	[[ $COMP_WORDBREAKS == *:* ]] && breaks+=:
	[[ $COMP_WORDBREAKS == *=* ]] && breaks+==
	[[ -n $breaks ]] && kept=${word%"${word##*[$breaks]}"}
	COMPREPLY=()
	while IFS=$'\t' read -r value rest; do
		case $value in
		:files)
			compopt -o filenames
			while read -r value; do
				COMPREPLY+=("$value")
			done < <(compgen -f -- "${word#--*=}")
			;;
		*)
			[[ $value == *[=:] ]] && compopt -o nospace
			COMPREPLY+=("${value#"$kept"}")
			;;
		esac
	done < <("$1" __complete "${words[@]:1}" 2>/dev/null)
}
complete -F _iotrace_bpf iotrace-bpf
