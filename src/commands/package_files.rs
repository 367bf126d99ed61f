//! The files that a package installs beside the program, generated from the help of its commands.

use std::fs::create_dir_all;
use std::io;
use std::path::Path;

use clap::CommandFactory;
use clap_complete::Shell;

use super::arguments::Arguments;

/// Writes manual pages and completions for bash, zsh, and fish below `share`, in the places where man and the
/// shells look for them below `/usr/share`.
///
/// # Errors
///
/// A folder or file that cannot be written.
pub fn write(share: &Path) -> io::Result<()> {
    let mut command = Arguments::command();
    let name = command.get_name().to_owned();
    let manual = share.join("man/man1");
    create_dir_all(&manual)?;
    clap_mangen::generate_to(command.clone(), manual)?;
    for (shell, folder) in [
        (Shell::Bash, "bash-completion/completions"),
        (Shell::Zsh, "zsh/site-functions"),
        (Shell::Fish, "fish/vendor_completions.d"),
    ] {
        let folder = share.join(folder);
        create_dir_all(&folder)?;
        clap_complete::generate_to(shell, &mut command, &name, folder)?;
    }
    Ok(())
}
