#compdef iotrace-bpf
# Completion of iotrace-bpf for zsh. The program itself knows what can follow.
_iotrace-bpf() {
	local -a whole open
	local line value
	for line in "${(@f)$("${(Q)words[1]}" __complete "${(@Q)words[2,CURRENT-1]}" "$PREFIX" 2>/dev/null)}"; do
		value=${line%%$'\t'*}
		case $value in
		'') ;;
		:files)
			compset -P '--*='
			_files
			;;
		*[=:]) open+=("${value//:/\\:}:${line#*$'\t'}") ;;
		*) whole+=("${value//:/\\:}:${line#*$'\t'}") ;;
		esac
	done
	(( $#whole )) && _describe -t values 'iotrace-bpf' whole
	(( $#open )) && _describe -t prefixes 'iotrace-bpf' open -S ''
}
# As a file of $fpath this is the function's body; else it is sourced.
if [[ ${funcstack[1]} == _iotrace-bpf ]]; then
	_iotrace-bpf "$@"
else
	compdef _iotrace-bpf iotrace-bpf
fi
