//! Columns of text. The first row is the heading.

/// Which side of its column a cell stands on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Left,
    Right,
}

/// A table for a terminal: columns as wide as their widest cell.
#[derive(Debug)]
pub(crate) struct Table {
    sides: Vec<Side>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these headings; one that starts with `>` stands on the right, as numbers do.
    pub(crate) fn new(headings: &[&str]) -> Self {
        let side = |h: &&str| if h.starts_with('>') { Side::Right } else { Side::Left };
        let heading = headings.iter().map(|h| h.trim_start_matches('>').to_owned()).collect();
        Self { sides: headings.iter().map(side).collect(), rows: vec![heading] }
    }

    /// Adds a row with a cell for each heading.
    pub(crate) fn row(&mut self, cells: Vec<String>) {
        debug_assert_eq!(cells.len(), self.sides.len(), "a cell for each heading");
        self.rows.push(cells);
    }

    /// Its lines, without trailing spaces.
    pub(crate) fn lines(&self) -> Vec<String> {
        let width = |column: usize| {
            self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.sides.len()).map(width).collect();
        let line = |row: &Vec<String>| {
            let cells = row.iter().zip(&widths).zip(&self.sides).map(|((cell, width), side)| match side {
                Side::Left => format!("{cell:<width$}"),
                Side::Right => format!("{cell:>width$}"),
            });
            cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        };
        self.rows.iter().map(line).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(&["NAME", ">SIZE", "STATE"]);
        table.row(vec!["a".into(), "10".into(), "ok".into()]);
        table.row(vec!["longer".into(), "9".into(), String::new()]);
        assert_eq!(table.lines(), ["NAME    SIZE  STATE", "a         10  ok", "longer     9"]);
    }
}
