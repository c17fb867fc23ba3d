//! A pseudo-terminal for the standard error of a command, and what its screen shows.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::process::Stdio;
use std::time::Duration;

use rustix::fs::OFlags;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;

/// The size of the terminal, large enough that nothing scrolls.
const ROWS_AND_COLUMNS: (u16, u16) = (60, 100);

/// The longest time until the screen shows what a test waits for.
const SCREEN_TIMEOUT: Duration = Duration::from_secs(120);

/// A terminal that a command writes to.
pub(crate) struct PseudoTerminal {
    chunks: mpsc::UnboundedReceiver<Vec<u8>>,
    written: Vec<u8>,
    /// The number of bytes that are on the screen.
    drawn: usize,
    screen: Screen,
}

/// Starts a command whose standard error is a new terminal.
pub(crate) fn spawn_on_terminal(command: &mut Command) -> (Child, PseudoTerminal) {
    let controller =
        openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).expect("a pseudo-terminal");
    grantpt(&controller).expect("access");
    unlockpt(&controller).expect("an unlocked terminal");
    let (ws_row, ws_col) = ROWS_AND_COLUMNS;
    let size = Winsize {
        ws_row,
        ws_col,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(&controller, size).expect("a size");
    let path = ptsname(&controller, Vec::new()).expect("a path");
    let terminal = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(i32::try_from(OFlags::NOCTTY.bits()).expect("a flag"))
        .open(OsStr::from_bytes(path.as_bytes()))
        .expect("the terminal");
    let child = command
        .stderr(Stdio::from(terminal))
        .spawn()
        .expect("the command runs");
    // The test's own copy: reading ends when no process has the terminal.
    command.stderr(Stdio::null());
    let (sender, chunks) = mpsc::unbounded_channel();
    let mut controller = File::from(controller);
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        // The end is an error on Linux.
        while let Ok(count @ 1..) = controller.read(&mut buffer) {
            if sender.send(buffer[..count].to_vec()).is_err() {
                return;
            }
        }
    });
    let terminal = PseudoTerminal {
        chunks,
        written: Vec::new(),
        drawn: 0,
        screen: Screen::default(),
    };
    (child, terminal)
}

impl PseudoTerminal {
    /// Waits until the lines on the screen satisfy `is_wanted`, and returns them.
    pub(crate) async fn wait_for_screen(&mut self, is_wanted: impl Fn(&[String]) -> bool) -> Vec<String> {
        let waiting = async {
            while !is_wanted(&self.screen.lines()) {
                match self.chunks.recv().await {
                    Some(chunk) => self.draw(&chunk),
                    None => return false,
                }
            }
            true
        };
        let is_shown = tokio::time::timeout(SCREEN_TIMEOUT, waiting).await;
        let lines = self.screen.lines();
        assert_eq!(
            is_shown,
            Ok(true),
            "the screen stays, or the command ended: {lines:#?}"
        );
        lines
    }

    /// Waits until no process has the terminal any more, and returns the lines on the screen.
    pub(crate) async fn wait_for_last_screen(&mut self) -> Vec<String> {
        let waiting = async {
            while let Some(chunk) = self.chunks.recv().await {
                self.draw(&chunk);
            }
        };
        tokio::time::timeout(SCREEN_TIMEOUT, waiting)
            .await
            .expect("the command ends in time");
        self.screen.lines()
    }

    /// Returns all that was written, with the control sequences.
    pub(crate) fn written(&self) -> String {
        String::from_utf8_lossy(&self.written).into_owned()
    }

    /// Draws what was written. The bytes of a character that is not complete wait for the rest.
    fn draw(&mut self, chunk: &[u8]) {
        self.written.extend(chunk);
        let rest = &self.written[self.drawn..];
        let text = match std::str::from_utf8(rest) {
            Ok(text) => text,
            Err(error) => std::str::from_utf8(&rest[..error.valid_up_to()]).expect("valid"),
        };
        text.chars()
            .for_each(|character| self.screen.put_or_run_control_sequence(character));
        self.drawn += text.len();
    }
}

/// The characters on a screen, and the place of the cursor, whose column is that of the next character.
#[derive(Default)]
struct Screen {
    rows: Vec<Vec<char>>,
    row: usize,
    column: usize,
    /// The control sequence that has begun, without the escape.
    sequence: Option<String>,
}

impl Screen {
    /// Returns the lines without the spaces at their ends.
    fn lines(&self) -> Vec<String> {
        let line = |row: &Vec<char>| row.iter().collect::<String>().trim_end().to_owned();
        self.rows.iter().map(line).collect()
    }

    /// Puts a character on the screen, or does what a control sequence says that ends with it.
    fn put_or_run_control_sequence(&mut self, character: char) {
        if let Some(mut sequence) = self.sequence.take() {
            if character.is_ascii_alphabetic() {
                self.control(character, sequence.trim_start_matches('[').parse().ok());
            } else {
                sequence.push(character);
                self.sequence = Some(sequence);
            }
            return;
        }
        match character {
            '\u{1b}' => self.sequence = Some(String::new()),
            '\r' => self.column = 0,
            '\n' => self.row += 1,
            character => {
                // A full line wraps when the next character comes.
                if self.column == usize::from(ROWS_AND_COLUMNS.1) {
                    self.row += 1;
                    self.column = 0;
                }
                let column = self.column;
                let row = self.current_row();
                if row.len() <= column {
                    row.resize(column + 1, ' ');
                }
                row[column] = character;
                self.column += 1;
            }
        }
    }

    /// Moves the cursor or clears a part of the screen.
    fn control(&mut self, letter: char, number: Option<usize>) {
        let count = number.unwrap_or(1);
        match (letter, number) {
            ('A', _) => self.row = self.row.saturating_sub(count),
            ('B', _) => self.row += count,
            ('C', _) => self.column += count,
            ('D', _) => self.column = self.column.saturating_sub(count),
            ('K', Some(2)) => self.current_row().clear(),
            ('K', None | Some(0)) => {
                let column = self.column;
                self.current_row().truncate(column);
            }
            ('J', None | Some(0)) => {
                let column = self.column;
                self.current_row().truncate(column);
                self.rows.truncate(self.row + 1);
            }
            // Colours, the only other sequences that the display uses.
            (letter, _) => assert_eq!(letter, 'm', "this screen does not know the control sequence"),
        }
    }

    /// Returns the row of the cursor.
    fn current_row(&mut self) -> &mut Vec<char> {
        if self.rows.len() <= self.row {
            self.rows.resize(self.row + 1, Vec::new());
        }
        &mut self.rows[self.row]
    }
}
