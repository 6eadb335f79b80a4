<#
.SYNOPSIS
Switch the configured table to BGE-small: check, backup reminder, three Alembic phases, report.

.DESCRIPTION
Moves the table that the settings name (environment or .env, see .env.example) to the configured model, BGE-small by
default. Asks before each phase. Run it again after an interruption: what is done stays done.
Exit codes: 0 done, 1 a phase failed, 2 wrong usage or configuration, 3 refused because a check did not hold,
4 database or model unavailable, 5 table locked, 10 you answered no.

.PARAMETER Yes
Do not ask; needed where there is no terminal.

.PARAMETER SkipBenchmark
Do not write the benchmark report at the end.
#>
[CmdletBinding()]
param([switch]$Yes, [switch]$SkipBenchmark)

$ErrorActionPreference = 'Stop'
$root = Split-Path -Parent $PSScriptRoot
$separator = [IO.Path]::PathSeparator
foreach ($folder in 'bin', 'Scripts') {
    $programs = Join-Path (Join-Path $root '.venv') $folder
    if (Test-Path $programs) { $env:PATH = "$programs$separator$env:PATH" }
}

function Say([string]$Text) { Write-Host "`n== $Text" }

function Confirm-Step([string]$Question) {
    if ($Yes) { return }
    if ((Read-Host "$Question [y/N]") -notin 'y', 'yes') {
        Write-Host 'Stopped; nothing after this point was done. Run the script again to go on.'
        exit 10
    }
}

function Invoke-Checked([string]$Program, [string[]]$Arguments) {
    & $Program @Arguments
    if ($LASTEXITCODE -ne 0) { exit $LASTEXITCODE }
}

function Get-Facts([string]$Command) {
    $json = & bge-pipeline --quiet $Command --json
    if ($LASTEXITCODE -ne 0) { exit $LASTEXITCODE }
    return ($json -join "`n") | ConvertFrom-Json
}

function Invoke-Phase([string]$Title, [string]$Question, [string]$Revision) {
    Say $Title
    Confirm-Step $Question
    & alembic -c (Join-Path $root 'alembic.ini') upgrade $Revision
    if ($LASTEXITCODE -ne 0) {
        Write-Host 'The phase did not finish; every committed batch is kept. Mend what the message names and run the script again.'
        exit 1
    }
}

if (-not $Yes -and [Console]::IsInputRedirected) {
    Write-Host 'There is no terminal to ask on: add -Yes to confirm every step.'
    exit 2
}
foreach ($program in 'python', 'bge-pipeline', 'alembic') {
    if (-not (Get-Command $program -ErrorAction SilentlyContinue)) {
        Write-Host "$program is not installed: install the project first."
        exit 2
    }
}

Say 'Configuration and connection'
$scripts = Join-Path $root 'scripts'
$backup = & python (Join-Path $scripts 'pg_dump_line.py') # exits with 2 where no database is named
if ($LASTEXITCODE -ne 0) { exit $LASTEXITCODE }
$facts = Get-Facts 'status'
$now = $facts.phase
Write-Host "The table is reached; its phase is $now."
if ($now -in 'swapped', 'retired') {
    Invoke-Checked 'python' @((Join-Path $scripts 'require_same_model.py')) # exits with 3 where the settings name another model
    Write-Host 'Nothing to do: search reads the new vectors already.'
    exit 0
}
if ($facts.rolled_back) {
    Write-Host "Search was rolled back to the old vectors at $($facts.rolled_back)."
    Confirm-Step 'Go forward again?'
    $env:FORWARD_AFTER_ROLLBACK = $facts.rolled_back # the phases refuse without it
}

Say 'Plan'
Invoke-Checked 'bge-pipeline' @('plan')

Say 'Backup'
Write-Host ($backup -join "`n")
Confirm-Step 'Do you have a backup that is recent enough?'

# Alembic's records are ahead of the table after `bge-pipeline rollback`; each phase sees for itself what is left to do.
Invoke-Checked 'alembic' @('-c', (Join-Path $root 'alembic.ini'), 'stamp', '004')
Invoke-Phase 'Phase 1 of 3: expand' 'Add the new column?' '005'
Invoke-Phase 'Phase 2 of 3: backfill' 'Embed every row? It may be interrupted at any time.' '006'
Invoke-Phase 'Phase 3 of 3: swap' 'Build the index and exchange the columns?' '007'

Say 'Report'
Invoke-Checked 'bge-pipeline' @('status')
if (-not $SkipBenchmark) { Invoke-Checked 'bge-pipeline' @('benchmark') }

Say 'Next steps'
Write-Host @'
bge-pipeline search "..."   try it
bge-pipeline rollback       search reads the old vectors again
bge-pipeline retire         drop the old vectors, when you trust the new ones; there is no way back after it
'@
