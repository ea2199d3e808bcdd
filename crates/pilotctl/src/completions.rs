//! Completion scripts for shells, from the table.
//!
//! A script knows every command, every flag with its meaning, and which values are files or come from a fixed list. It
//! asks nobody while it completes: no daemon, no registry.

use std::fmt::Write as _;

use crate::table::{self, Command, Form};

/// The shells there is a script for.
pub(crate) const SHELLS: [&str; 3] = ["bash", "zsh", "fish"];
/// What may stand before any command.
const GLOBAL: [(&str, &str); 3] =
    [("--json", "print one line of JSON"), ("--help", "explain pilotctl"), ("--version", "print the version")];

/// The script for a shell of [`SHELLS`].
pub(crate) fn script(shell: &str) -> Option<String> {
    match shell {
        "bash" => Some(bash()),
        "zsh" => Some(zsh()),
        "fish" => Some(fish()),
        _ => None,
    }
}

/// What a value can be.
#[derive(Debug, PartialEq, Eq)]
enum Values {
    /// Nothing a shell knows.
    Any,
    /// A path.
    Files,
    /// One of these.
    Words(Vec<String>),
}

impl Values {
    /// By the name on the usage line.
    fn of(name: &str) -> Self {
        match name.trim_matches(['<', '>', '[', ']']) {
            "path" | "file" | "filepath" | "dir" => Self::Files,
            "shell" => Self::Words(SHELLS.map(str::to_owned).to_vec()),
            "command" => Self::Words(firsts().into_iter().map(|(name, _)| name).collect()),
            // `text|json`, not `<address|hostname>`.
            _ if name.contains('|') && !name.starts_with(['<', '[']) => {
                Self::Words(name.split('|').map(str::to_owned).collect())
            }
            _ => Self::Any,
        }
    }
}

/// A name on the line and what the table declares behind it.
struct Entry {
    name: String,
    command: &'static Command,
}

/// Every command under every name.
fn entries() -> Vec<Entry> {
    let names = |command: &'static Command| {
        std::iter::once(command.name).chain(table::aliases(command.name)).map(move |name| (name, command))
    };
    table::all().flat_map(names).map(|(name, command)| Entry { name: name.to_owned(), command }).collect()
}

/// The words that may come first, with their meaning: commands and groups.
fn firsts() -> Vec<(String, String)> {
    let mut words: Vec<(String, String)> = Vec::new();
    for entry in entries() {
        match entry.name.split_once(' ') {
            None => words.push((entry.name, entry.command.about.to_owned())),
            Some((group, _)) if words.iter().any(|(word, _)| word == group) => {}
            Some((group, _)) => words.push((group.to_owned(), table::members(group).join(", "))),
        }
    }
    words.push(("help".into(), "explain a command".into()));
    words
}

/// The groups, with their members and what they do.
fn groups() -> Vec<(String, Vec<(String, String)>)> {
    let mut groups: Vec<(String, Vec<(String, String)>)> = Vec::new();
    for command in table::all() {
        let Some((group, member)) = command.name.split_once(' ') else { continue };
        let member = (member.to_owned(), command.about.to_owned());
        match groups.iter_mut().find(|(name, _)| name == group) {
            Some((_, members)) => members.push(member),
            None => groups.push((group.to_owned(), vec![member])),
        }
    }
    groups
}

/// Flags with their meaning, and what their values can be.
fn flags(command: &Command) -> Vec<(String, &'static str, Option<Values>)> {
    let mut flags = Vec::new();
    for arg in command.args {
        if let Form::Flag { name, value } = arg.form() {
            flags.push((format!("--{name}"), arg.help, value.map(Values::of)));
        }
    }
    flags.push(("--json".into(), "print one line of JSON", None));
    flags.push(("--help".into(), "explain this command", None));
    flags
}

/// What positional arguments can be.
fn positionals(command: &Command) -> Values {
    let all = command.args.iter().filter(|arg| matches!(arg.form(), Form::Positional { .. }));
    all.map(|arg| Values::of(arg.text())).find(|values| *values != Values::Any).unwrap_or(Values::Any)
}

/// A text in single quotes.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

fn joined<'a>(words: impl IntoIterator<Item = &'a String>) -> String {
    words.into_iter().map(String::as_str).collect::<Vec<_>>().join(" ")
}

/// Finds the command on the line; the same in both shells that have arrays of words.
fn find_command(first: &str, last: &str) -> String {
    let names: Vec<String> = groups().into_iter().map(|(name, _)| name).collect();
    format!(
        "    for ((i = {first}; i < {last}; i++)); do\n\
         \x20       word=${{words[i]}}\n\
         \x20       if [[ $word == -* || $word == '=' ]]; then continue; fi\n\
         \x20       if [[ -z $command && ( $word == extras || $word == help ) ]]; then continue; fi\n\
         \x20       if [[ -z $command ]]; then command=$word\n\
         \x20       elif [[ ' {} ' == *\" $command \"* ]]; then command=\"$command $word\"\n\
         \x20       fi\n\
         \x20   done\n",
        joined(&names)
    )
}

fn bash() -> String {
    let mut text = String::from(
        "# bash completion for pilotctl: source it, or put it into a directory that bash-completion reads.\n\
         _pilotctl() {\n\
         \x20   local words=(\"${COMP_WORDS[@]}\") cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]}\n\
         \x20   local command= options= values= files= i word\n\
         \x20   COMPREPLY=()\n\
         \x20   # --flag=value comes in three parts.\n\
         \x20   if [[ $cur == '=' ]]; then cur=\n\
         \x20   elif [[ $prev == '=' && COMP_CWORD -ge 2 ]]; then prev=${COMP_WORDS[COMP_CWORD-2]}\n\
         \x20   fi\n",
    );
    text.push_str(&find_command("1", "COMP_CWORD"));
    text.push_str("    case $command in\n");
    let first = firsts();
    let global: Vec<String> = GLOBAL.iter().map(|(flag, _)| (*flag).to_owned()).collect();
    let _ = writeln!(
        text,
        "        '') values={}; options={} ;;",
        quoted(&joined(first.iter().map(|(word, _)| word))),
        quoted(&joined(&global))
    );
    for (group, members) in groups() {
        let members = joined(members.iter().map(|(member, _)| member));
        let _ = writeln!(text, "        {}) values={} ;;", quoted(&group), quoted(&members));
    }
    for entry in entries() {
        let flags = flags(entry.command);
        let _ = writeln!(text, "        {})", quoted(&entry.name));
        let mut taken = String::new();
        for (flag, _, value) in &flags {
            let action = match value {
                None => continue,
                Some(Values::Any) => "return",
                Some(Values::Files) => "files=1",
                Some(Values::Words(words)) => &format!("values={}", quoted(&joined(words))),
            };
            let _ = writeln!(taken, "                {flag}) {action} ;;");
        }
        let options = format!("options={}", quoted(&joined(flags.iter().map(|(flag, ..)| flag))));
        let otherwise = match positionals(entry.command) {
            Values::Any => options,
            Values::Files => format!("{options}; files=1"),
            Values::Words(words) => format!("{options}; values={}", quoted(&joined(&words))),
        };
        let _ =
            write!(text, "            case $prev in\n{taken}                *) {otherwise} ;;\n            esac ;;\n");
    }
    text.push_str(
        "    esac\n\
         \x20   if [[ -n $options && ( $cur == -* || ( -z $values && -z $files ) ) ]]; then values=$options; files=\n\
         \x20   fi\n\
         \x20   if [[ -n $files ]]; then\n\
         \x20       compopt -o filenames 2>/dev/null\n\
         \x20       mapfile -t COMPREPLY < <(compgen -f -- \"$cur\")\n\
         \x20   else\n\
         \x20       mapfile -t COMPREPLY < <(compgen -W \"$values\" -- \"$cur\")\n\
         \x20   fi\n\
         }\n\
         complete -F _pilotctl pilotctl\n",
    );
    text
}

/// `'word:meaning'` for zsh's `_describe`.
fn described<'a>(words: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let items: Vec<String> = words
        .into_iter()
        .map(|(word, meaning)| quoted(&format!("{}:{}", word.replace(':', "\\:"), meaning.replace(':', "\\:"))))
        .collect();
    items.join(" ")
}

fn zsh() -> String {
    let mut text = String::from(
        "#compdef pilotctl\n\
         # zsh completion for pilotctl: put it as _pilotctl into a directory of $fpath, or source it after compinit.\n\
         _pilotctl() {\n\
         \x20   local command= word prev=${words[CURRENT-1]} i\n\
         \x20   local -a values options\n",
    );
    text.push_str(&find_command("2", "CURRENT"));
    text.push_str("    case $command in\n");
    let first = firsts();
    let _ = writeln!(
        text,
        "        ('') values=({}); options=({}) ;;",
        described(first.iter().map(|(word, about)| (word.as_str(), about.as_str()))),
        described(GLOBAL)
    );
    for (group, members) in groups() {
        let members = described(members.iter().map(|(member, about)| (member.as_str(), about.as_str())));
        let _ = writeln!(text, "        ({}) values=({members}) ;;", quoted(&group));
    }
    for entry in entries() {
        let flags = flags(entry.command);
        let _ = writeln!(text, "        ({})", quoted(&entry.name));
        let mut taken = String::new();
        for (flag, help, value) in &flags {
            let action = match value {
                None => continue,
                Some(Values::Any) => format!("_message {}; return", quoted(help)),
                Some(Values::Files) => "_files; return".into(),
                Some(Values::Words(words)) => format!("compadd -- {}; return", joined(words)),
            };
            let _ = writeln!(taken, "                ({flag}) {action} ;;");
        }
        let options = format!("options=({})", described(flags.iter().map(|(flag, help, _)| (flag.as_str(), *help))));
        let otherwise = match positionals(entry.command) {
            Values::Any => options,
            Values::Files => format!("{options}; [[ $PREFIX == -* ]] || {{ _files; return }}"),
            Values::Words(words) => {
                format!("{options}; values=({})", described(words.iter().map(|word| (word.as_str(), ""))))
            }
        };
        let _ =
            write!(text, "            case $prev in\n{taken}                (*) {otherwise} ;;\n            esac ;;\n");
    }
    text.push_str(
        "    esac\n\
         \x20   if [[ $PREFIX == -* || $#values -eq 0 ]]; then\n\
         \x20       _describe -o option options\n\
         \x20   else\n\
         \x20       _describe command values\n\
         \x20   fi\n\
         }\n\
         if [[ $funcstack[1] == _pilotctl ]]; then _pilotctl \"$@\"; else compdef _pilotctl pilotctl; fi\n",
    );
    text
}

fn fish() -> String {
    let names: Vec<String> = groups().into_iter().map(|(name, _)| name).collect();
    let mut text = format!(
        "# fish completion for pilotctl: put it as pilotctl.fish into ~/.config/fish/completions.\n\
         function __pilotctl_is\n\
         \x20   set -l command ''\n\
         \x20   for word in (commandline -opc)[2..-1]\n\
         \x20       if string match -q -- '-*' $word\n\
         \x20           continue\n\
         \x20       end\n\
         \x20       if test -z \"$command\"; and contains -- $word extras help\n\
         \x20           continue\n\
         \x20       end\n\
         \x20       if test -z \"$command\"\n\
         \x20           set command $word\n\
         \x20       else if contains -- $command {}\n\
         \x20           set command \"$command $word\"\n\
         \x20       end\n\
         \x20   end\n\
         \x20   test \"$command\" = \"$argv[1]\"\n\
         end\n\
         complete -c pilotctl -f\n\
         complete -c pilotctl -l json -d 'print one line of JSON'\n",
        joined(&names)
    );
    let mut word = |command: &str, word: &str, about: &str| {
        let when = quoted(&format!("__pilotctl_is \"{command}\""));
        let _ = writeln!(text, "complete -c pilotctl -n {when} -a {} -d {}", fish_quoted(word), fish_quoted(about));
    };
    for (first, about) in firsts() {
        word("", &first, &about);
    }
    for (group, members) in groups() {
        for (member, about) in members {
            word(&group, &member, &about);
        }
    }
    for entry in entries() {
        let when = quoted(&format!("__pilotctl_is \"{}\"", entry.name));
        for (flag, help, value) in flags(entry.command) {
            let value = match value {
                _ if flag == "--json" => continue,
                None => String::new(),
                Some(Values::Any) => " -x".into(),
                Some(Values::Files) => " -r -F".into(),
                Some(Values::Words(words)) => format!(" -x -a {}", fish_quoted(&joined(&words))),
            };
            let name = flag.trim_start_matches('-');
            let _ = writeln!(text, "complete -c pilotctl -n {when} -l {name}{value} -d {}", fish_quoted(help));
        }
        match positionals(entry.command) {
            Values::Any => {}
            Values::Files => {
                let _ = writeln!(text, "complete -c pilotctl -n {when} -F");
            }
            Values::Words(words) => {
                let _ = writeln!(text, "complete -c pilotctl -n {when} -a {}", fish_quoted(&joined(&words)));
            }
        }
    }
    text
}

/// A text in single quotes; fish escapes inside them.
fn fish_quoted(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_off_the_usage_line() {
        assert_eq!(Values::of("<path>"), Values::Files);
        assert_eq!(Values::of("<filepath>"), Values::Files);
        assert_eq!(Values::of("<address|hostname>"), Values::Any);
        assert_eq!(Values::of("text|json|binary"), Values::Words(vec!["text".into(), "json".into(), "binary".into()]));
        assert_eq!(Values::of("<n>"), Values::Any);
    }

    #[test]
    fn every_shell_knows_every_command_and_flag() {
        for shell in SHELLS {
            let text = script(shell).unwrap();
            for entry in entries() {
                assert!(text.contains(&entry.name), "{shell}: {}", entry.name);
                for (flag, ..) in flags(entry.command) {
                    assert!(text.contains(flag.trim_start_matches('-')), "{shell}: {flag}");
                }
            }
        }
        assert_eq!(script("cmd"), None);
    }
}
