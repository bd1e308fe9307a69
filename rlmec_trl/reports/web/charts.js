// Draws the charts of `data.charts`, a list of dictionaries, into a section of the page.
function drawCharts(container, charts) {}
